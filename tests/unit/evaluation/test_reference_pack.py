"""A pack measures a divergence as the float model itself would, and says how sure it is.

In: the embedded model and a rounded one, made-up distributions, damaged files. Out: KL by the pack
beside KL by both models, the estimate's spread, refusals.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import crumb, quantize_line, refusal, succeed
from source_models import write_source_model
from tiny_checkpoint import write_checkpoint

from crumb.checkpoints.crumb.reader import MANIFEST
from crumb.checkpoints.safetensors import ArrayToWrite, write_file
from crumb.cli.main import main
from crumb.embedded import MODELS
from crumb.errors import CheckpointError, UsageError
from crumb.evaluation.execution import Execution
from crumb.evaluation.proof import pack_of
from crumb.evaluation.reference_pack import (
    DRAWN_TOKENS,
    PACK,
    TOP_TOKENS,
    ReferencePack,
    _compared,
    _packed,
    make_pack,
    read_pack,
    score_on_pack,
    write_pack,
)
from crumb.evaluation.scores import score
from crumb.files.model_files import read_json
from crumb.run.model import Model, open_model
from crumb.texts.windows import Windows

NOVELLA = MODELS["novella-7m"]
Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model at 3 bits, with its pack."""
    out = tmp_path_factory.mktemp("pack") / "rounded"
    line = quantize_line(NOVELLA, out, bits=3, group_size=128, method="round", no_pack=None)
    assert main(line) == 0
    return out


def test_the_pack_gives_the_divergence_that_the_float_model_gives(rounded: Path) -> None:
    pack, model, source = read_pack(rounded / PACK), open_model(str(rounded)), Model(_source())
    scores, reference, bound = score_on_pack(model, pack, Execution())
    against, full = score([source, model], pack.windows.tokens, 1, with_reference=True)
    assert scores.divergence is not None
    assert full.divergence is not None
    exact, estimate = float(full.divergence.mean()), float(scores.divergence.mean())
    assert abs(estimate / exact - 1) < 0.02
    assert abs(estimate - exact) < 4 * bound.standard_error
    assert bound.lower_bound < exact
    assert np.allclose(scores.loss, full.loss, atol=1e-4)
    assert np.allclose(reference.loss, against.loss, atol=1e-4)
    assert full.agrees is not None
    assert scores.agrees is not None
    assert (scores.agrees == full.agrees).mean() > 0.999  # equal logits may change places


def _source():  # type: ignore[no-untyped-def]
    return open_model(str(NOVELLA)).checkpoint


def test_a_pack_of_any_vocabulary_is_at_most_20_mb(rounded: Path) -> None:
    pack = read_pack(rounded / PACK)
    assert pack.tokens.shape == (8, 511, TOP_TOKENS + DRAWN_TOKENS)
    assert (rounded / PACK).stat().st_size < 5_000_000


def test_the_estimate_is_unbiased_and_its_error_is_what_it_says() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 3, (1, 2000))
    other = logits + generator.normal(0, 0.7, logits.shape)
    reference, model = (each - np.log(np.exp(each).sum()) for each in (logits, other))
    exact = float((np.exp(reference) * (reference - model)).sum())
    following = np.zeros(1, np.int64)
    estimates, variances = [], []
    for seed in range(300):
        rows = _packed(reference.copy(), following, np.random.default_rng(seed))
        windows = Windows(np.zeros((1, 2), np.int64), 1, "gptq", "", "")
        pack = ReferencePack(
            "",
            windows,
            *(np.asarray(each, np.float32)[None] for each in (rows.loss, rows.tail)),
            rows.tokens[None],
            rows.log_probabilities.astype(np.float32)[None],
        )
        compared = _compared(model.copy(), following, pack, 0, slice(0, 1))
        estimates.append(compared[1, 0])
        variances.append(compared[2, 0])
        assert compared[3, 0] <= exact
    spread = float(np.std(estimates))
    assert abs(np.mean(estimates) - exact) < 4 * spread / np.sqrt(300)
    assert spread <= 1.2 * np.sqrt(np.mean(variances))  # parts of the tail: at most as wide


def test_a_small_vocabulary_has_no_tail_and_no_error(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "tiny")
    assert main(quantize_line(source, tmp_path / "out", method="round")) == 0
    models = [open_model(str(tmp_path / name)) for name in ("tiny", "out")]
    tokens = np.random.default_rng(0).integers(0, 300, (2, 20))
    windows = Windows(tokens, 1, "gptq", "x", "y")
    pack = make_pack(models[0], windows)
    assert (pack.tail < 1.0).all()
    scores, _, bound = score_on_pack(models[1], pack, Execution())
    full = score(models, tokens, 1, with_reference=True)[1]
    assert scores.divergence is not None
    assert full.divergence is not None
    difference = abs(scores.divergence.mean() - full.divergence.mean())
    assert difference < 4 * bound.standard_error + 1e-6


def test_a_pack_is_read_as_it_was_written(rounded: Path, tmp_path: Path) -> None:
    pack = read_pack(rounded / PACK)
    write_pack(pack, tmp_path / "x.pack")
    assert (tmp_path / "x.pack").read_bytes() == (rounded / PACK).read_bytes()


DAMAGES = {
    "no reference pack": lambda arrays, metadata: metadata.update(version="9"),
    "lacks an array": lambda arrays, metadata: arrays.pop("tail"),
    "not finite": lambda arrays, metadata: arrays["loss"].fill(np.nan),
    "windows that cannot be": lambda arrays, metadata: arrays["windows"].fill(-1),
    "first_scored": lambda arrays, metadata: metadata.update(first_scored="many"),
    "without its tokens": lambda arrays, metadata: arrays.update(tokens=arrays["tokens"][:, :1]),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_a_damaged_pack_is_refused(words: str, rounded: Path, tmp_path: Path) -> None:
    pack = read_pack(rounded / PACK)
    arrays = {
        "windows": pack.windows.tokens.astype(np.int32),
        "loss": pack.loss.copy(),
        "tail": pack.tail,
        "tokens": pack.tokens,
        "log_probabilities": pack.log_probabilities,
    }
    metadata = {"format": "crumb-reference-pack", "version": "1", "first_scored": "1"}
    DAMAGES[words](arrays, metadata)
    written = {
        name: ArrayToWrite(array.dtype, array.shape, lambda array=array: array)  # type: ignore[misc]
        for name, array in arrays.items()
    }
    write_file(tmp_path / "x.pack", written, metadata)
    with pytest.raises(CheckpointError, match=words):
        read_pack(tmp_path / "x.pack")


def test_a_model_of_another_vocabulary_is_refused(rounded: Path, tmp_path: Path) -> None:
    tiny = open_model(str(write_checkpoint(tmp_path / "tiny")))
    with pytest.raises(UsageError, match="vocabulary"):
        score_on_pack(tiny, read_pack(rounded / PACK), Execution())
    pack = read_pack(rounded / PACK)
    small = replace(pack, windows=replace(pack.windows, tokens=pack.windows.tokens[:, :8] % 300))
    with pytest.raises(UsageError, match="vocabulary of the reference pack"):
        score_on_pack(tiny, small, Execution())


def test_quantize_writes_what_it_cost_and_eval_finds_it_again(
    rounded: Path, capsys: Capsys
) -> None:
    measured = json.loads((rounded / "manifest.json").read_text())["measured"]
    told = json.loads(succeed(capsys, "eval", rounded, "--reference", "pack", "--json"))
    assert told["divergence"]["kl"]["value"] == measured["kl"]
    assert told["pack"]["lower_bound"] < measured["kl"]
    by_path = succeed(capsys, "eval", rounded, "--reference", rounded / PACK)
    assert "the pack's own error" in by_path
    assert refusal(capsys, 4, "eval", NOVELLA, "--reference", "pack")
    gate = crumb(capsys, "eval", rounded, "--reference", "pack", "--fail-if", "kl > 0.001")
    assert gate.code == 3


def test_the_measured_cost_is_on_the_card_in_the_list_and_in_the_fit(
    rounded: Path, capsys: Capsys
) -> None:
    kl = json.loads((rounded / "manifest.json").read_text())["measured"]["kl"]
    card = succeed(capsys, "show", rounded, "--card")
    assert card.startswith("# rounded\n")
    assert f"{kl:.5f}" in card
    assert "crumb eval rounded --reference pack" in card
    listed = json.loads(succeed(capsys, "ls", rounded, "--json"))
    assert kl in [row["kl"] for row in listed]
    (row,) = json.loads(succeed(capsys, "fit", rounded, "--no-speed", "--json"))["models"][0][
        "rows"
    ]
    assert row["quality"] == {"kl": kl, "measured": True, "of": "excerpt-evaluation"}
    assert "| float16 |" in succeed(capsys, "show", NOVELLA, "--card")


def test_the_pack_of_a_model_that_reads_a_source_has_spans_that_are_left_out(
    tmp_path: Path, capsys: Capsys
) -> None:
    source, out = write_source_model(tmp_path / "t5"), tmp_path / "out"
    assert main(quantize_line(source, out, bits=3, method="round", no_pack=None)) == 0
    pack, model = read_pack(out / PACK), open_model(str(out))
    windows = pack.windows
    assert (windows.protocol, windows.tokens.shape) == ("t5-spans", (32, 160))
    scores, reference, bound = score_on_pack(model, pack, Execution())
    models, first = [open_model(str(source)), model], windows.first_scored
    against, full = score(models, windows.tokens, first, with_reference=True)
    assert scores.divergence is not None
    assert full.divergence is not None
    exact, estimate = float(full.divergence.mean()), float(scores.divergence.mean())
    assert abs(estimate - exact) < 4 * bound.standard_error + 0.001 * exact
    assert np.allclose(scores.loss, full.loss, atol=1e-4)
    assert np.allclose(reference.loss, against.loss, atol=1e-4)
    said = json.loads(succeed(capsys, "eval", out, "--reference", "pack", "--json"))
    assert said["protocol"] == "t5-spans"
    kl = said["divergence"]["kl"]["value"]
    assert kl == pytest.approx(estimate, rel=1e-3)
    assert read_json(out / MANIFEST)["measured"]["kl"] == pytest.approx(kl, rel=1e-3)


def test_a_model_that_reads_no_text_gets_no_pack(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "tiny")
    (source / "tokenizer.json").unlink(missing_ok=True)
    assert pack_of(open_model(str(source))) is None
