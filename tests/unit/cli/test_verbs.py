"""What each verb prints: JSON that parses and holds what it should, and text for people.

In: the tiny checkpoint, float and quantized. Out: stdout of formats, show, eval, quantize.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import crumb, eval_line, quantize_line, succeed
from quantized_files import MODULE, gptq_arrays, random_grid, write_model
from tiny_checkpoint import EMBEDDING, NORM, QUERY, write_checkpoint

from crumb.cli.main import main
from crumb.cli.quantize import default_out
from crumb.formats.catalog import CATALOG, ZeroKind, make_format

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny, and out: its quick quantization."""
    place = tmp_path_factory.mktemp("verbs")
    assert main(quantize_line(write_checkpoint(place / "tiny"), place / "out")) == 0
    return place


def test_formats_lists_every_width_and_zero_kind(capsys: Capsys) -> None:
    rows = json.loads(succeed(capsys, "formats", "--json"))
    assert {(row["bits"], row["zero"]) for row in rows} == {
        (row.bits, zero.value) for row in CATALOG.values() for zero in row.zeros
    }
    row = next(row for row in rows if (row["bits"], row["zero"]) == (3, "variable"))
    assert row["bits_per_weight"]["g128"] == 3 + (16 + 8) / 128
    assert row["formula"] == "w = scale * (code - zero_point)"
    assert {row["name"] for row in rows} == set(CATALOG)
    by_name = {row["name"]: row for row in rows}
    assert by_name["q3_k"]["bits_per_weight"] == {"g16": 3 + 6 / 16 + 16 / 256}
    assert by_name["iq4_nl"]["formula"] == "w = scale * table[code]"
    text = succeed(capsys, "formats")
    for row in rows:
        assert row["name"] in text
        assert row["formula"] in text
        assert row["diagram"] in text


def test_show_describes_a_float_model(folder: Path, capsys: Capsys) -> None:
    record = json.loads(succeed(capsys, "show", folder / "tiny", "--json"))
    assert record["family"] == "llama"
    assert record["stages"] == 5
    assert record["vocabulary"] == 300
    assert record["job"] is None
    assert record["file_bytes"] == (folder / "tiny" / "model.safetensors").stat().st_size
    tensors = {row["name"]: row for row in record["tensors"]}
    assert len(tensors) == 22 + 7
    assert tensors[QUERY]["shape"] == [64, 64]
    assert tensors[QUERY]["format"] == "float16"
    assert tensors[QUERY]["bits_per_weight"] == 16
    assert not any(row["quantized"] for row in record["tensors"])
    text = succeed(capsys, "show", folder / "tiny")
    assert "llama, 0.1 M parameters, 5 stages, vocabulary 300, 256 positions" in text
    assert QUERY not in text
    assert QUERY in succeed(capsys, "show", folder / "tiny", "--tensors")


def test_show_describes_what_was_done_to_a_quantized_model(folder: Path, capsys: Capsys) -> None:
    record = json.loads(succeed(capsys, "show", folder / "out", "--json"))
    assert record["job"]["bits"] == 3
    assert record["job"]["calibration"]["spec"] == "excerpt-calibration"
    tensors = {row["name"]: row for row in record["tensors"]}
    assert tensors[QUERY]["format"] == "int3-g32-fixed"
    assert tensors[QUERY]["bits_per_weight"] == 3 + 16 / 32
    assert 0 < tensors[QUERY]["relative_error"] < 0.2
    assert 0 < tensors[QUERY]["zero_share"] < 1
    assert tensors[QUERY]["damping"] > 0
    assert tensors[EMBEDDING]["format"] == "int8-g32-fixed"
    assert tensors[EMBEDDING]["relative_error"] is None
    assert not tensors[NORM]["quantized"]
    text = succeed(capsys, "show", folder / "out")
    assert "quantized by gptq, scales search" in text
    assert "calibrated on excerpt-calibration: 4 sequences of 64 tokens, seed 0" in text
    worst = max(row["relative_error"] or 0 for row in record["tensors"])
    listed = [line for line in text.splitlines() if "int3-g32-fixed" in line and "x" in line]
    assert f"{worst:.5f}" in listed[2]  # before are the blocks' format and the count of each
    assert len(listed) == 2 + 8


def test_show_says_what_runs_decoded_and_whose_columns_stand_in_another_order(
    tmp_path: Path, capsys: Capsys
) -> None:
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 48, "desc_act": True}
    for group_size, note in (
        (48, "GPTQ of 4 bits, runs decoded as float32"),
        (32, "another order"),
    ):
        grid = random_grid(4, (64, 96), group_size, shuffled=True)
        config = settings | {"group_size": group_size}
        model = write_model(tmp_path / str(group_size), {MODULE: gptq_arrays(grid)}, config)
        record = json.loads(succeed(capsys, "show", model, "--json"))
        row = next(row for row in record["tensors"] if row["name"] == f"{MODULE}.weight")
        assert row["stored_as"] == "GPTQ of 4 bits"
        assert (row["decoded"], row["reordered"]) == (group_size == 48, group_size == 32)
        assert note in succeed(capsys, "show", model, "--tensors")
        summary = "1 tensors float32 decoded from GPTQ of 4 bits"
        assert (summary in succeed(capsys, "show", model)) == (group_size == 48)


def test_show_prints_the_plan(folder: Path, capsys: Capsys) -> None:
    text = succeed(capsys, "show", folder / "tiny", "--plan")
    assert text.startswith("llama: vocabulary 300, ")
    assert "stage block.2: hidden, positions -> hidden" in text
    record = json.loads(succeed(capsys, "show", folder / "tiny", "--plan", "--json"))
    assert record["plan"] == text.splitlines()


def test_eval_prints_every_figure_with_its_error(folder: Path, capsys: Capsys) -> None:
    line = eval_line(folder / "out", "--reference", folder / "tiny")
    record = json.loads(succeed(capsys, *line, "--json"))
    assert record["windows"] == 3
    assert record["divergence"]["kl"]["standard_error"] > 0
    text = succeed(capsys, *line)
    moved = record["divergence"]
    for value, error in (
        (f"{record['perplexity']['value']:.4f}", record["perplexity"]["standard_error"]),
        (f"{moved['perplexity_ratio']['value']:.5f}", moved["perplexity_ratio"]["standard_error"]),
        (f"{moved['kl']['value']:.6f}", moved["kl"]["standard_error"]),
        (f"{moved['top1_agreement']['value']:.5f}", moved["top1_agreement"]["standard_error"]),
    ):
        digits = len(value.split(".")[1])
        assert f"{value} ± {error:.{digits}f}" in text
    for key in ("kl_median", "kl_99", "kl_99_9", "kl_max"):
        assert f"{moved[key]:.6f}" in text
    assert f"against {folder / 'tiny'}" in text
    assert "3 windows of 64, 189 tokens scored" in text
    assert "native executor, f32 activations, f32 cache" in text


def test_eval_can_measure_what_running_costs(folder: Path, capsys: Capsys) -> None:
    line = eval_line(folder / "out", "--reference", folder / "out", "--json")
    exact = json.loads(succeed(capsys, *line))
    ran = json.loads(succeed(capsys, *line, "--activations", "int8"))
    array = json.loads(succeed(capsys, *line, "--executor", "array"))
    names = ("executor", "activations", "cache")
    assert [[each[name] for name in names] for each in (exact, ran, array)] == [
        ["native", "f32", "f32"],
        ["native", "int8", "f16"],
        ["array", "f32", "f32"],
    ]
    assert exact["divergence"]["kl"]["value"] == array["divergence"]["kl"]["value"] == 0
    assert 0 < ran["divergence"]["kl"]["value"] < 0.01


def test_one_window_has_no_error_to_print(folder: Path, capsys: Capsys) -> None:
    line = ["eval", folder / "tiny", "--text", "excerpt-evaluation", "--window", 64, "--limit", 1]
    record = json.loads(succeed(capsys, *line, "--json"))
    assert record["perplexity"]["standard_error"] is None
    assert record["divergence"] is None
    (figure,) = [row for row in succeed(capsys, *line).splitlines() if "perplexity " in row]
    assert "±" not in figure


def test_a_failed_gate_prints_the_figures_first(folder: Path, capsys: Capsys) -> None:
    line = eval_line(folder / "out", "--reference", folder / "tiny", "--json")
    gates = ["--fail-if", "kl > 100", "--fail-if", "top1_agreement < 1"]
    finished = crumb(capsys, *line, *gates)
    assert finished.code == 3
    assert json.loads(finished.out)["divergence"]["top1_agreement"]["value"] < 1
    assert "top1_agreement is" in finished.err
    assert crumb(capsys, *line, "--fail-if", "kl > 100").code == 0


def test_quantize_prints_its_result_as_json(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    record = json.loads(
        succeed(capsys, *quantize_line(folder / "tiny", tmp_path / "out", json=True))
    )
    sizes = {"out", "file_bytes", "bits_per_weight", "already_done", "fallbacks"}
    assert record.keys() == sizes | {"measured"}
    assert record["measured"] is None  # without a pack
    assert record["out"] == str(tmp_path / "out")
    assert record["file_bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert record["already_done"] is False
    assert record["fallbacks"] == []


def test_a_fallback_is_reported_with_its_reason_and_refused_by_strict(
    folder: Path, tmp_path: Path, capsys: Capsys
) -> None:
    """One token cannot span 64 columns, and a damping of 1e-9 does not hide it."""
    options = {"sequences": 1, "length": 1, "damping": 1e-9}
    finished = crumb(capsys, *quantize_line(folder / "tiny", tmp_path / "out", **options))
    assert finished.code == 0
    assert ": model.layers.0.mlp.down_proj.weight, " in finished.out
    assert " and 18 more" in finished.out
    assert "damping raised from 1e-09" in finished.out
    line = quantize_line(folder / "tiny", tmp_path / "strict", strict=True, **options)
    finished = crumb(capsys, *line)
    assert finished.code == 1
    assert "--strict forbids it" in finished.err


@pytest.mark.parametrize(
    ("model", "group", "expected"),
    [
        ("models/tiny", "128", "tiny-int3-g128-fixed"),
        ("models/tiny/", "row", "tiny-int3-row-fixed"),
        ("org/name", "32", "name-int3-g32-fixed"),
        ("org/name@v1.0", "32", "name-int3-g32-fixed"),
        (".", "32", "model-int3-g32-fixed"),
        ("/", "32", "model-int3-g32-fixed"),
    ],
)
def test_the_default_output_is_named_after_model_and_format(
    model: str, group: str, expected: str
) -> None:
    assert default_out(model, 3, group, ZeroKind.FIXED) == Path(expected)


def test_the_default_output_lies_in_the_current_directory(
    folder: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["quantize", folder / "tiny", "--bits", 4, "--group-size", "row", "--method", "round"]
    succeed(capsys, *line)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-int4-row-fixed"]
    shown = json.loads(succeed(capsys, "show", "tiny-int4-row-fixed", "--json"))
    assert make_format(4, 0, ZeroKind.FIXED).name in {row["format"] for row in shown["tensors"]}
