"""Outliers of matrices against values worked out by hand, in every container.

In: a tiny checkpoint with matrices of plus and minus one, one column planted 30 times larger; its
quantizations by us, to GGUF and to GPTQ. Out: the figures of `crumb show --outliers`, their order.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import quantize_line, succeed
from tiny_checkpoint import DOWN, QUERY, make_tensors, write_checkpoint

from crumb.checkpoints.opening import open_checkpoint
from crumb.cli.main import main
from crumb.errors import SolveError
from crumb.fitting import outliers
from crumb.fitting.outliers import TensorOutliers, outliers_of
from crumb.solve.problem import worst_columns_share

PLANTED = 5
"""The column that is 30 times larger."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DOWN, 64 x 96, of plus and minus one; QUERY, 64 x 64, too, but for one column."""
    tensors = make_tensors()
    for name in (DOWN, QUERY):
        rows, columns = np.indices(tensors[name].shape)
        tensors[name] = np.where((rows + columns) % 2, 1, -1).astype(np.float32)
    tensors[QUERY][:, PLANTED] *= 30
    path = write_checkpoint(tmp_path_factory.mktemp("outliers") / "tiny", tensors)
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["use_regex"] = True  # GGUF has a name for this one: gpt-2
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return path


def by_name(rows: list[TensorOutliers]) -> dict[str, TensorOutliers]:
    return {row.name: row for row in rows}


def test_figures_are_those_worked_out_by_hand(model: Path) -> None:
    rows = by_name(outliers_of(open_checkpoint(model)))
    even = rows[DOWN]  # levels are 2/7 apart: 1 becomes 6/7 and -1 becomes -8/7, in every column
    assert (even.shape, even.kurtosis, even.largest_weight) == ((64, 96), 1.0, 1.0)
    assert (even.largest_column, even.weighted) == (1.0, False)
    assert even.worst_columns_share == pytest.approx(1 / 96, rel=1e-5)
    planted, variance = rows[QUERY], (63 + 30**2) / 64
    assert planted.kurtosis == pytest.approx((63 + 30**4) / 64 / variance**2)
    assert planted.largest_weight == pytest.approx(30 / variance**0.5)
    assert planted.largest_column == 30
    # Levels are 60/7 apart: all other weights become 0, and 30 lies half a level beside two.
    assert planted.worst_columns_share == pytest.approx((30 / 7) ** 2 / (63 + (30 / 7) ** 2))


def test_rows_read_a_few_at_a_time_give_the_same_figures(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = outliers_of(open_checkpoint(model))
    monkeypatch.setattr(outliers, "WEIGHTS_AT_ONCE", 7 * 64)
    parts = by_name(outliers_of(open_checkpoint(model)))
    for row in whole:
        for figure in ("kurtosis", "largest_weight", "largest_column", "worst_columns_share"):
            assert getattr(parts[row.name], figure) == pytest.approx(getattr(row, figure))


def test_a_matrix_far_from_zero_has_the_kurtosis_of_its_deviations(tmp_path: Path) -> None:
    tensors = make_tensors()
    tensors[DOWN] = (256 + np.sign(tensors[DOWN]) / 4).astype(np.float32)
    rows = by_name(outliers_of(open_checkpoint(write_checkpoint(tmp_path / "far", tensors))))
    assert rows[DOWN].kurtosis == pytest.approx(1.0, abs=0.01)
    tensors[DOWN] = np.zeros_like(tensors[DOWN])
    rows = by_name(outliers_of(open_checkpoint(write_checkpoint(tmp_path / "zero", tensors))))
    assert rows[DOWN] == TensorOutliers(DOWN, (64, 96), None, None, None, None, False)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    tensors = make_tensors()
    tensors[DOWN][3, 4] = np.nan
    with pytest.raises(SolveError, match=r"not finite"):
        outliers_of(open_checkpoint(write_checkpoint(tmp_path / "nan", tensors)))


def test_every_container_is_read_and_our_own_tells_the_weighted_error(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantized = tmp_path / "out"
    assert main(quantize_line(model, quantized, bits=4)) == 0
    manifest = json.loads((quantized / "manifest.json").read_text())["tensors"]
    for container, out in (("gguf", tmp_path / "out.gguf"), ("gptq", tmp_path / "gptq")):
        succeed(capsys, "export", quantized, "--to", container, "--out", out)
    for path in (quantized, tmp_path / "out.gguf", tmp_path / "gptq"):
        checkpoint = open_checkpoint(path)
        row = by_name(outliers_of(checkpoint))[QUERY]
        weights = checkpoint.tensors.read_float(QUERY).astype(np.float64)
        apart = weights - weights.mean()
        assert row.kurtosis == pytest.approx((apart**4).mean() / (apart**2).mean() ** 2)
        assert row.largest_weight == pytest.approx(np.abs(weights).max() / weights.std())
        assert row.weighted == (path == quantized)
        if row.weighted:
            assert row.worst_columns_share == manifest[QUERY]["worst_columns_share"]


def test_the_worst_are_printed_first_and_json_has_all(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads(succeed(capsys, "show", model, "--outliers", "--json"))["outliers"]
    matrices = [spec for spec in open_checkpoint(model).plan.tensors() if spec.matrix]
    assert len(rows) == len(matrices)
    assert rows[0]["name"] == QUERY
    assert rows[-1]["name"] == DOWN
    kurtoses = [row["kurtosis"] for row in rows]
    assert kurtoses == sorted(kurtoses, reverse=True)
    text = succeed(capsys, "show", model, "--outliers")
    listed = [line for line in text.splitlines() if ".weight" in line]
    assert len(listed) == 8
    assert QUERY in listed[0]
    assert f"{rows[0]['kurtosis']:.3g}" in listed[0]
    assert DOWN in succeed(capsys, "show", model, "--outliers", "--tensors")


def test_a_share_of_columns_is_rounded_up() -> None:
    errors = np.ones(101)
    errors[:2] = 10, 20
    assert worst_columns_share(errors) == pytest.approx(30 / 129)
    assert worst_columns_share(errors[:100]) == pytest.approx(20 / 128)
    assert worst_columns_share(np.zeros(5)) is None
