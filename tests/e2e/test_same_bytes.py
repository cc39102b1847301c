"""The same job gives the same bytes: again, on other thread counts, from shards, from other files.

In: checkpoints of the same weights. Out: equal hashes, or equal tensors.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import digest, quantize_line, run_process, succeed
from tiny_checkpoint import (
    EMBEDDING,
    HEAD,
    NORM,
    make_tensors,
    write_checkpoint,
)

from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.safetensors import StoredArray
from crumb.cli.main import main
from crumb.embedded import MODELS
from crumb.files.model_files import read_json

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

ON_PROCESSORS = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv.pop(1))])
from crumb.cli.main import run
run()
"""


def stored_bytes(directory: Path) -> dict[str, bytes]:
    """Every array of a quantized model, byte by byte, by tensor."""
    checkpoint = open_checkpoint(directory)
    found = {}
    for name, entry in checkpoint.tensors.entries.items():
        array = entry if isinstance(entry, StoredArray) else entry.tiles
        found[name] = array.read().tobytes()
    return found


@pytest.fixture(scope="module")
def usual_bytes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The arrays of a quick quantization with the usual settings."""
    place = tmp_path_factory.mktemp("usual")
    main(quantize_line(write_checkpoint(place / "tiny"), place / "out"))
    return stored_bytes(place / "out")


def test_the_same_command_writes_the_same_bytes(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in ("one", "two"):
        succeed(capsys, *quantize_line(tiny, tmp_path / out))
    first = digest(tmp_path / "one")
    assert first == digest(tmp_path / "two")
    assert sorted(first) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize(
    "different",
    [
        {"seed": 1},
        {"bits": 4},
        {"zero": "variable"},
        {"sequences": 5},
        {"damping": 0.5},
        {"no_act_order": True},
        {"method": "round"},
    ],
    ids=str,
)
def test_every_setting_changes_the_bytes(
    different: dict[str, object],
    usual_bytes: dict[str, bytes],
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    succeed(capsys, *quantize_line(tiny, tmp_path / "other", **different))
    assert stored_bytes(tmp_path / "other") != usual_bytes


def on_threads(model: Path, out: Path, processors: int, blas: int, **options: object) -> None:
    """Quantize in a process with so many processors and BLAS threads."""
    line = quantize_line(model, out, **options)
    environment = dict.fromkeys(THREADS, str(blas))
    finished = run_process(processors, *line, program=ON_PROCESSORS, **environment)
    assert finished.code == 0, finished.err


def test_thread_counts_do_not_change_the_bytes(tmp_path: Path) -> None:
    """Wide enough that BLAS would share its products out; more threads than most machines have."""
    tensors = make_tensors(hidden=320, feed_forward=448, blocks=1)
    model = write_checkpoint(tmp_path / "wide", tensors)
    for processors, blas in ((1, 1), (64, 1), (64, 5)):
        on_threads(model, tmp_path / f"{processors}-{blas}", processors, blas)
    expected = digest(tmp_path / "1-1")
    assert digest(tmp_path / "64-1") == expected
    assert digest(tmp_path / "64-5") == expected


@pytest.mark.oracle
def test_thread_counts_do_not_change_the_bytes_of_a_trained_model(tmp_path: Path) -> None:
    """Slow, hence among the oracle's tests."""
    options = {"group_size": 128, "sequences": 16, "length": 512}
    for processors, blas in ((1, 1), (64, 1), (64, 7)):
        out = tmp_path / f"{processors}-{blas}"
        on_threads(MODELS["novella-7m"], out, processors, blas, **options)
    expected = digest(tmp_path / "1-1")
    assert digest(tmp_path / "64-1") == expected
    assert digest(tmp_path / "64-7") == expected


def test_what_is_no_matrix_keeps_its_bytes(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    succeed(capsys, *quantize_line(tiny, tmp_path / "out"))
    before, after = open_checkpoint(tiny), open_checkpoint(tmp_path / "out")
    norms = [spec.name for spec in before.plan.tensors() if not spec.matrix]
    assert len(norms) == 7
    for name in norms:
        was, now = before.tensors.entry(name), after.tensors.entry(name)
        assert isinstance(was, StoredArray)
        assert isinstance(now, StoredArray)
        assert now.dtype == was.dtype
        assert now.read().tobytes() == was.read().tobytes()


def test_a_tied_embedding_is_stored_once_and_an_own_head_beside_it(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    untied = write_checkpoint(tmp_path / "untied", make_tensors(tied=False))
    succeed(capsys, *quantize_line(tiny, tmp_path / "one"))
    succeed(capsys, *quantize_line(untied, tmp_path / "two", head=4))
    formats = [
        {name: record["format"] for name, record in manifest["tensors"].items()}
        for manifest in (read_json(tmp_path / out / "manifest.json") for out in ("one", "two"))
    ]
    assert HEAD not in formats[0]
    assert [each[EMBEDDING] for each in formats] == ["int8-g32-fixed"] * 2
    assert formats[1][HEAD] == "int4-g32-fixed"
    tied = stored_bytes(tmp_path / "one")
    assert HEAD not in tied
    assert EMBEDDING in tied


def test_shards_and_float_types_give_the_same_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiny weights are exact in f16, bf16 and f32, so only the norms' type may differ."""
    sources = {
        "single": {"dtype": "F16"},
        "shards": {"dtype": "F16", "shards": 3},
        "bf16": {"dtype": "BF16"},
        "f32": {"dtype": "F32", "shards": 2},
    }
    stored = {}
    for name, how in sources.items():
        model = write_checkpoint(tmp_path / name, **how)
        succeed(capsys, *quantize_line(model, tmp_path / f"{name}-out"))
        stored[name] = stored_bytes(tmp_path / f"{name}-out")
    assert stored["shards"] == stored["single"]
    matrices = {spec.name for spec in open_checkpoint(tmp_path / "single").plan.tensors()}
    matrices = {name for name in matrices if "norm" not in name}
    for name in ("bf16", "f32"):
        assert stored[name].keys() == stored["single"].keys()
        for array in matrices:
            assert stored[name][array] == stored["single"][array], array
        norm = np.frombuffer(stored["single"][NORM], np.float16)
        assert len(stored[name][NORM]) == {"bf16": 2, "f32": 4}[name] * len(norm)
