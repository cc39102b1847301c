"""`crumb delta make` and `crumb delta apply` as a user types them.

In: the tiny checkpoint and its quick quantization. Out: a delta, the same directory again, figures.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import crumb, digest, quantize_line, refusal, succeed
from tiny_checkpoint import QUERY, make_tensors, write_checkpoint

from crumb.checkpoints.opening import open_checkpoint
from crumb.cli.main import main

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny, and out: its quick quantization."""
    place = tmp_path_factory.mktemp("delta")
    assert main(quantize_line(write_checkpoint(place / "tiny"), place / "out")) == 0
    return place


def test_a_delta_restores_what_was_quantized(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    delta = tmp_path / "x.delta"
    made = succeed(capsys, "delta", "make", folder / "tiny", folder / "out", "--out", delta)
    first, second, third = made.splitlines()
    assert first.startswith(f"delta: {delta}  ")
    assert "% of the quantized model's" in first
    assert "bits per quantized weight" in second
    assert open_checkpoint(folder / "tiny").sha256() in third
    restored = succeed(capsys, "delta", "apply", folder / "tiny", delta, "--out", tmp_path / "back")
    assert restored.startswith(f"restored: {tmp_path / 'back'}  5 files")
    assert digest(tmp_path / "back") == digest(folder / "out")


def test_json_has_every_matrix_and_file(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    delta = tmp_path / "x.delta"
    line = ["delta", "make", folder / "tiny", folder / "out", "--out", delta, "--json"]
    record = json.loads(succeed(capsys, *line))
    assert record["out"] == str(delta)
    assert record["delta_bytes"] == delta.stat().st_size
    assert record["quantized_bytes"] == (folder / "out" / "model.safetensors").stat().st_size
    tensors = record["tensors"]
    assert len(tensors) == 22
    weights = sum(tensor["weights"] for tensor in tensors)
    delta_bytes = sum(tensor["delta_bytes"] for tensor in tensors)
    assert record["bits_per_weight"] == 8 * delta_bytes / weights
    query = next(tensor for tensor in tensors if tensor["name"] == QUERY)
    assert query["format"] == "int3-g32-fixed"
    assert query["bits_per_weight"] == 8 * query["delta_bytes"] / (64 * 64)
    assert 0 < query["changed_share"] < 1
    line = ["delta", "apply", folder / "tiny", delta, "--out", tmp_path / "back", "--json"]
    applied = json.loads(succeed(capsys, *line))
    assert applied["out"] == str(tmp_path / "back")
    assert applied["sha256"] == record["quantized_sha256"]
    assert applied["files"] == digest(folder / "out")


def test_tensors_are_listed_when_asked_for(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    line = ["delta", "make", folder / "tiny", folder / "out", "--out", tmp_path / "x"]
    text = succeed(capsys, *line, "--tensors")
    (listed,) = [row for row in text.splitlines() if QUERY in row]
    assert "int3-g32-fixed" in listed
    assert listed.rstrip().endswith("%")


def test_the_default_delta_is_named_after_the_directory(
    folder: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    succeed(capsys, "delta", "make", folder / "tiny", folder / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out.delta.safetensors"]


def test_refusals_are_one_line(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    delta = tmp_path / "x.delta"
    other = write_checkpoint(tmp_path / "other", make_tensors(seed=1))
    succeed(capsys, "delta", "make", folder / "tiny", folder / "out", "--out", delta)
    back = ["--out", tmp_path / "back"]
    said = refusal(capsys, 1, "delta", "apply", other, delta, *back)
    assert "this delta was made of another base" in said
    said = refusal(capsys, 1, "delta", "apply", folder / "tiny", tmp_path / "none", *back)
    assert "No such file" in said
    said = refusal(capsys, 1, "delta", "make", folder / "tiny", folder / "out", "--out", delta)
    assert "exists" in said
    said = refusal(capsys, 2, "delta", "make", folder / "tiny", folder / "tiny", *back)
    assert "a delta is made of a crumb directory" in said
    assert refusal(capsys, 2, "delta", "apply", folder / "tiny", delta).startswith("crumb: ")
    assert not (tmp_path / "back").exists()


def test_delta_alone_shows_its_two_verbs(capsys: Capsys) -> None:
    finished = crumb(capsys, "delta", "--help")
    assert finished.code == 0
    assert "make" in finished.out
    assert "apply" in finished.out
