"""Float columns from the command to every way out: quantize, run, show, delta, export, refusals.

In: the tiny checkpoint with two planted columns. Out: the manifest's counts, the same bytes after a
death, equal logits of both executors, restored deltas, exports that fold or refuse.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import digest, quantize_line, refusal, succeed
from tiny_checkpoint import QUERY, VOCABULARY, make_tensors, tokenizer_json, write_checkpoint
from tiny_models import VARIANTS, write_model

from crumb import quantize_run
from crumb.checkpoints.delta.apply import apply_delta
from crumb.checkpoints.delta.make import make_delta
from crumb.checkpoints.delta.record import read_delta
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.safetensors import array_in_memory, read_header, write_file
from crumb.cli.main import main
from crumb.errors import CheckpointError, UsageError
from crumb.exporting import Container, ExportRequest, export
from crumb.fitting.quantize_cost import most_column_bytes, working_bytes
from crumb.pipeline import choose_formats, quantize
from crumb.requests.quantize_options import make_quantize_request, share_of_columns
from crumb.run.load import load
from crumb.run.memory_plan import WeightsKind
from crumb.run.model import Model
from crumb.solve import whole_matrix
from crumb.solve.problem import LayerProblem, Method, SolveSettings

ROUND = SolveSettings(method=Method.ROUND)
PLANTED = [2, 33]
TOKENS = np.arange(40)[None, :] % 256
MODEL = "model.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """QUERY has two inputs 30 times larger than the rest."""
    tensors = make_tensors()
    tensors[QUERY][:, PLANTED] *= 30
    return write_checkpoint(tmp_path_factory.mktemp("columns") / "tiny", tensors)


@pytest.fixture(scope="module")
def quantized(source: Path) -> Path:
    out = source.with_name("out")
    assert main(line(source, out)) == 0
    return out


def line(source: Path, out: Path, **options: Any) -> list[str]:
    return quantize_line(source, out, effort="fast", **({"keep_columns": "5%"} | options))


def test_the_manifest_and_show_say_how_many_columns_each_matrix_has(
    quantized: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((quantized / "manifest.json").read_text())
    assert manifest["job"]["solve"]["keep_columns"] == 0.05
    counts = {name: each["float_columns"] for name, each in manifest["tensors"].items()}
    assert counts[QUERY] == 2
    entry = open_checkpoint(quantized).tensors.entry(QUERY)
    assert entry.columns.places.tolist() == PLANTED  # type: ignore[union-attr]
    assert manifest["tensors"][QUERY]["bytes"] == entry.size_bytes
    assert entry.size_bytes == 64 * 64 * 3.5 / 8 + 2 * (4 + 64 * 2)
    shown = json.loads(succeed(capsys, "show", quantized, "--json"))
    rows = {row["name"]: row for row in shown["tensors"]}
    assert {name: rows[name]["float_columns"] for name in counts} == counts
    assert rows[QUERY]["bits_per_weight"] == 8 * entry.size_bytes / 64**2
    text = succeed(capsys, "show", quantized, "--tensors")
    assert "2 float columns" in text
    assert f"{sum(counts.values())} float columns beside the codes" in text


@pytest.mark.parametrize("weights", list(WeightsKind))
@pytest.mark.parametrize("activations", ["f32", "int8"])
def test_the_engine_gives_what_the_array_executor_gives(
    weights: WeightsKind, activations: str, quantized: Path
) -> None:
    expected = Model(open_checkpoint(quantized)).logits(TOKENS)[0]
    settings = {"context_tokens": 64, "cache": "f32", "weights": weights}
    model = load(quantized, activations=activations, **settings)
    found = np.array(model.logits(TOKENS[0].tolist()))
    size = np.abs(expected).max()
    assert np.abs(found - expected).max() <= (1e-5 if activations == "f32" else 0.2) * size


@pytest.mark.parametrize("variant", ["gpt2", "mixtral", "deepseek_v2", "rwkv", "lfm2"])
def test_experts_heads_and_states_run_with_columns(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_and_last(problem: LayerProblem, weights: Any, _: object) -> LayerProblem:
        return replace(problem, columns=np.array([0, weights.shape[1] - 1]))

    monkeypatch.setattr(whole_matrix, "with_columns", first_and_last)
    source = write_model(tmp_path, VARIANTS[variant] | {"vocab_size": VOCABULARY})
    (source / "tokenizer.json").write_text(tokenizer_json())
    settings = {"bits": 4, "group_size": "row", "method": "round", "keep_columns": 0.1}
    request = make_quantize_request(source, tmp_path / "out", pack=False, **settings)
    counts = [each["float_columns"] for each in quantize(request).manifest["tensors"].values()]
    assert counts.count(2) > len(counts) / 2
    expected = Model(open_checkpoint(request.out)).logits(TOKENS[:, :24])[0]
    # Int8 roundings may choose other experts for a token, but not for most.
    for activations, middle, share in (("f32", np.max, 1e-5), ("int8", np.median, 0.02)):
        model = load(request.out, context_tokens=32, cache="f32", activations=activations)
        found = np.array(model.logits(TOKENS[0, :24].tolist()))
        assert middle(np.abs(found - expected)) <= share * np.abs(expected).max()


def test_a_run_that_died_goes_on_to_the_same_bytes(
    source: Path, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        left = [9]

        def dying(*arguments: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                raise RuntimeError("killed")
            return solve(*arguments)

        solve = quantize_run.solve_matrix
        patch.setattr(quantize_run, "solve_matrix", dying)
        with pytest.raises(RuntimeError, match="killed"):
            main(line(source, tmp_path / "again"))
    assert main(line(source, tmp_path / "again")) == 0
    assert digest(tmp_path / "again") == digest(quantized)


def test_a_delta_restores_columns_bit_for_bit(
    source: Path, quantized: Path, tmp_path: Path
) -> None:
    base = open_checkpoint(source)
    make_delta(base, open_checkpoint(quantized), tmp_path / "x.delta")
    apply_delta(base, read_delta(tmp_path / "x.delta"), tmp_path / "back")
    assert digest(tmp_path / "back") == digest(quantized)


def test_exports_fold_columns_where_weights_are_floats_and_refuse_where_they_are_codes(
    quantized: Path, tmp_path: Path
) -> None:
    weights = open_checkpoint(quantized).tensors.read_float(QUERY)
    for to in (Container.CRUMB, Container.SAFETENSORS):
        out = tmp_path / to.value
        export(ExportRequest(str(quantized), out, to))
        slip = 0 if to is Container.CRUMB else 2.0**-11 * np.abs(weights).max()
        found = open_checkpoint(out).tensors.read_float(QUERY)
        assert np.abs(found - weights).max() <= slip
    for to, type in ((Container.GPTQ, None), (Container.GGUF, None), (Container.GGUF, "q4_k")):
        request = ExportRequest(str(quantized), tmp_path / f"{type}.{to.value}", to, type=type)
        with pytest.raises(UsageError, match="no place for float columns"):
            export(request)
        assert not request.out.exists()


def test_training_leaves_columns_as_they_are(source: Path, tmp_path: Path) -> None:
    best = make_quantize_request(
        source,
        tmp_path / "best",
        bits=2,
        group_size=32,
        effort="best",
        training_steps=2,
        model_steps=2,
        keep_columns=0.05,
        calibration="excerpt-calibration",
        sequences=2,
        length_tokens=64,
        pack=False,
    )
    together = replace(best.solve, training_steps=0)
    solved = replace(together, model_steps=0)
    columns = []
    for solve in (best.solve, together, solved):
        request = replace(best, solve=solve, out=tmp_path / str(len(columns)))
        quantize(request)
        entry = open_checkpoint(request.out).tensors.entry(QUERY)
        columns.append(entry.read().columns)  # type: ignore[union-attr]
    assert [each.places.tolist() for each in columns] == 3 * [PLANTED]
    assert (columns[1].tiles == columns[2].tiles).all()  # trained blocks before it change its H


def test_the_cost_counts_as_many_columns_as_may_be(source: Path) -> None:
    request = make_quantize_request(source, "x", bits=3, group_size=32, keep_columns="5%")
    plan = open_checkpoint(source).plan
    formats = choose_formats(plan, request)
    by_hand = 0
    for spec in plan.tensors():
        if spec.matrix and "embed" not in spec.name:
            count = -(-spec.shape[1] * 5 // 100)
            by_hand += count * (4 + 2 * -(-spec.shape[0] // 16) * 16)
    assert most_column_bytes(plan, formats, request.solve.keep_columns) == by_hand
    assert most_column_bytes(plan, formats, 0.0) == 0
    working = [
        working_bytes(open_checkpoint(source), formats, (0, 1), replace(ROUND, keep_columns=share))
        for share in (0.05, 0.0)
    ]
    assert working[0] - working[1] == 2 * by_hand


def test_shares_are_numbers_or_percent() -> None:
    assert [share_of_columns(each) for each in ("0.5%", ".5%", "0.005", 0.005, 0)] == [
        0.005,
        0.005,
        0.005,
        0.005,
        0.0,
    ]
    for wrong in ("5", "11%", 0.2, "-1%", "x", "", "%", None, True, float("nan")):
        with pytest.raises(UsageError, match="not a share"):
            share_of_columns(wrong)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "gguf:q4_k"}, "a target leaves no room"),
        ({"bits_per_weight": 3.5}, "a budget leaves no room"),
        ({"bits": 3, "group_size": 32, "as_published": True}, "float columns need static_groups"),
    ],
)
def test_what_cannot_have_columns_is_refused(
    options: dict[str, Any], said: str, source: Path
) -> None:
    def chosen() -> object:
        request = make_quantize_request(source, "x", keep_columns="1%", **options)
        return choose_formats(open_checkpoint(source).plan, request)

    with pytest.raises(UsageError, match=said):
        chosen()


def test_broken_columns_are_refused_in_one_line(
    quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays, metadata = read_header(quantized / MODEL)
    read = {name: each.read() for name, each in arrays.items()}
    places, weights = f"{QUERY}.columns", f"{QUERY}.column_weights"
    broken = {
        "some of its inputs": {places: np.array([33, 2], np.int32)},
        "ascending from 0 to 63": {places: np.array([2, 64], np.int32)},
        "expected int32": {places: np.array([2.0, 33.0], np.float32)},
        "do not follow from their places": {weights: read[weights][:, :1]},
        "expected float16": {weights: read[weights].astype(np.float32)},
        "are places and weights": {weights: None},
    }
    for said, change in broken.items():
        folder = Path(shutil.copytree(quantized, tmp_path / said))
        new = {name: each for name, each in (read | change).items() if each is not None}
        written = {name: array_in_memory(np.ascontiguousarray(each)) for name, each in new.items()}
        write_file(folder / MODEL, written, metadata)
        assert said in refusal(capsys, 1, "show", folder)


def test_an_embedding_with_columns_is_refused(quantized: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quantized, tmp_path / "embedding"))
    arrays, metadata = read_header(quantized / MODEL)
    written = {name: array_in_memory(each.read()) for name, each in arrays.items()}
    name = "model.embed_tokens.weight"
    written[f"{name}.columns"] = array_in_memory(np.array([1], np.int32))
    written[f"{name}.column_weights"] = array_in_memory(np.zeros((19, 1, 16), np.float16))
    write_file(folder / MODEL, written, metadata)
    with pytest.raises(CheckpointError, match="an embedding has no float columns"):
        open_checkpoint(folder)
