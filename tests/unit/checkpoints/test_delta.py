"""Delta files: made of a base and its quantized directory, they restore the directory bit for bit.

In: tiny checkpoints, quantized by the pipeline or into any format of the catalog at random.
Out: the same files by their hashes; refusals that leave nothing behind.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import digest
from numpy.typing import NDArray
from random_matrices import is_ragged
from tiny_checkpoint import EMBEDDING, QUERY, make_tensors, write_checkpoint

from crumb.checkpoints import directory_writer
from crumb.checkpoints.crumb.workspace import open_workspace
from crumb.checkpoints.crumb.writer import assemble_directory
from crumb.checkpoints.delta import record as delta_record
from crumb.checkpoints.delta.apply import apply_delta
from crumb.checkpoints.delta.make import DeltaReport, make_delta
from crumb.checkpoints.delta.parameters import field_types
from crumb.checkpoints.delta.record import parts_of, read_delta
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.safetensors import ArrayToWrite, read_header, write_file
from crumb.errors import CheckpointError, DoesNotFit, OutputConflict, UsageError
from crumb.files.atomic_file import write_json
from crumb.formats.catalog import CATALOG, Format, ZeroKind, format_of_row, make_format
from crumb.formats.grid import GroupParameters, encode_reference, make_parameters
from crumb.kernels.tile import pack_tensor
from crumb.pipeline import QuantizeRequest, quantize
from crumb.solve.problem import Method, Scales, SolveSettings
from crumb.solve.scales import minmax

ROUND = SolveSettings(method=Method.ROUND, scales=Scales.MINMAX)


def rounded(model: Path, out: Path, **options: Any) -> Path:
    """A quick quantization by rounding."""
    settings = {"bits": 3, "group_size": 32, "solve": ROUND, "pack": False} | options
    quantize(QuantizeRequest(str(model), out, **settings))
    return out


def there_and_back(base: Path, quantized: Path, place: Path) -> DeltaReport:
    """Make a delta, apply it, and compare every file."""
    opened = open_checkpoint(base)
    report = make_delta(opened, open_checkpoint(quantized), place / "x.delta")
    apply_delta(opened, read_delta(place / "x.delta"), place / "back")
    assert digest(place / "back") == digest(quantized)
    assert sorted(path.name for path in place.iterdir() if "x.delta" in path.name) == ["x.delta"]
    return report


def random_matrix(
    weights: NDArray[np.float32], format: Format, seed: int
) -> tuple[NDArray[np.uint8], GroupParameters]:
    """Any codes, and fields of any bits that are finite."""
    rng = np.random.default_rng(seed)
    rows, columns = weights.shape
    fields: dict[str, NDArray[Any]] = {}
    for name, dtype in field_types(format).items():
        wide = format.blocks if name in ("scale", "minimum") else format.whole_groups
        shape = (rows, wide(columns))
        if dtype.kind == "f":
            fields[name] = (rng.standard_normal(shape) / 16).astype(dtype)
        else:
            low, high = (-8, 8) if dtype.kind == "i" else (0, 16)
            fields[name] = rng.integers(low, high, shape).astype(dtype)
    if format.row.super_block is not None:
        fields["sub_scale"][:, format.groups(columns) :] = 0
        if format.zero is ZeroKind.MINIMUM:
            fields["sub_scale"] = np.abs(fields["sub_scale"])
    codes = rng.integers(0, 1 << format.bits, (rows, columns)).astype(np.uint8)
    return codes, GroupParameters(**fields)


def written(base: Path, out: Path, format: Format, seed: int = 0) -> Path:
    """A crumb directory whose matrices are random codes of a format, where their width fits it."""
    source = open_checkpoint(base)
    with open_workspace(out, {"crumb": "test"}, restart=False) as workspace:
        assert workspace is not None
        for spec in source.plan.tensors():
            if spec.matrix:
                weights = source.tensors.read_float(spec.name)
                fits = is_ragged(format) or spec.shape[1] % 256 == 0
                chosen = format if fits else make_format(format.bits, 32, format.zero)
                matrix = random_matrix(weights, chosen, seed)
                workspace.store(spec.name, pack_tensor(*matrix, chosen), {})
        assemble_directory(source, workspace, {"manifest_version": 1})
        workspace.publish()
    return out


EVERY_FORMAT = [
    format_of_row(row, row.group_sizes[0], zero) for row in CATALOG.values() for zero in row.zeros
]


@pytest.mark.parametrize("format", EVERY_FORMAT, ids=lambda format: format.name)
def test_random_codes_of_every_format_come_back(format: Format, tmp_path: Path) -> None:
    """Whatever a solver chose: the codes have nothing to do with the base."""
    wide = not is_ragged(format)
    sizes = {"hidden": 256, "feed_forward": 256, "blocks": 1} if wide else {"blocks": 1}
    base = write_checkpoint(tmp_path / "base", make_tensors(**sizes))
    report = there_and_back(base, written(base, tmp_path / "out", format), tmp_path)
    assert all(tensor.changed_share is not None for tensor in report.tensors)
    assert format.name in {tensor.format.name for tensor in report.tensors}


@pytest.mark.parametrize("zero", ZeroKind)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_what_was_rounded_takes_almost_nothing(bits: int, zero: ZeroKind, tmp_path: Path) -> None:
    """minmax is what the extremes suggest, so that both codes and parameters are zeros."""
    base = write_checkpoint(tmp_path / "base")
    out = rounded(base, tmp_path / "out", bits=bits, zero=zero)
    report = there_and_back(base, out, tmp_path)
    assert [tensor.changed_share for tensor in report.tensors] == [0] * len(report.tensors)
    # Empty frames: headers of blocks and one table, which is far below an eighth of the codes.
    assert all(tensor.delta_bytes < tensor.stored_bytes / 8 for tensor in report.tensors)


@pytest.mark.parametrize(
    ("group_size", "tied", "shards", "dtype"),
    [(0, True, 1, "F32"), (64, False, 2, "BF16"), (32, False, 3, "F16")],
)
def test_any_base_restores_what_gptq_chose(
    group_size: int, tied: bool, shards: int, dtype: str, tmp_path: Path
) -> None:
    """Groups of 64 are ragged on 96 inputs; a head of its own, shards, each float type."""
    from crumb.pipeline import Calibration

    tensors = make_tensors(tied=tied)
    base = write_checkpoint(tmp_path / "base", tensors, dtype=dtype, shards=shards)
    calibration = Calibration("excerpt-calibration", sequences=4, length_tokens=64)
    out = rounded(
        base,
        tmp_path / "out",
        group_size=group_size,
        solve=SolveSettings(),
        calibration=calibration,
    )
    report = there_and_back(base, out, tmp_path)
    moved = [tensor.changed_share for tensor in report.tensors if tensor.format.bits == 3]
    assert min(share or 0 for share in moved) > 0
    assert report.delta_bytes < report.quantized_bytes
    sources = {name: file.source.value for name, file in report.record.files.items()}
    assert sources == {
        "config.json": "delta",
        "manifest.json": "delta",
        "model.safetensors": "weights",
        "tokenizer.json": "base",
        "tokenizer_config.json": "base",
    }


def test_a_model_in_shards_comes_back_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_writer, "SHARD_BYTES", 25_000)
    base = write_checkpoint(tmp_path / "base")
    there_and_back(base, rounded(base, tmp_path / "out"), tmp_path)
    assert len(open_checkpoint(tmp_path / "back").weight_files) > 2


def test_a_matrix_in_parts_is_the_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedding has 300 rows: six parts of 48 and one of 12."""
    monkeypatch.setattr(delta_record, "PART_WEIGHTS", 50 * 64)
    base = write_checkpoint(tmp_path / "base")
    there_and_back(base, rounded(base, tmp_path / "out"), tmp_path)
    pieces = [name for name in read_delta(tmp_path / "x.delta").pieces if EMBEDDING in name]
    assert len(pieces) == 7


@pytest.mark.parametrize("shape", [(1, 1), (16, 5), (100, 7), (37, 1 << 23), (4096, 4096)])
def test_parts_are_whole_tiles_and_cover_all_rows(shape: tuple[int, int]) -> None:
    parts = parts_of(shape)
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == shape[0]
    assert all((part.stop - part.start) % 16 == 0 for part in parts[:-1])


def test_tiles_that_packing_would_not_leave_are_kept_as_they_are(tmp_path: Path) -> None:
    """A bit in the padding behind the embedding's last row."""
    base = write_checkpoint(tmp_path / "base")
    out = rounded(base, tmp_path / "out")
    arrays, _ = read_header(out / "model.safetensors")
    tiles = arrays[f"{EMBEDDING}.tiles"]
    raw = bytearray((out / "model.safetensors").read_bytes())
    raw[tiles.offset_bytes + tiles.size_bytes - 1] ^= 128  # row 15 of a tile of 12
    (out / "model.safetensors").write_bytes(raw)
    report = there_and_back(base, out, tmp_path)
    unlike = [tensor.name for tensor in report.tensors if tensor.changed_share is None]
    assert unlike == [EMBEDDING]


@pytest.mark.parametrize("shards", [1, 2])
def test_columns_in_another_order_meet_their_own_weights(shards: int, tmp_path: Path) -> None:
    """So that what was rounded is still told as rounded; the order may lie in another file."""
    base = write_checkpoint(tmp_path / "base")
    out = rounded(base, tmp_path / "out")
    source, order = open_checkpoint(base), np.random.default_rng(0).permutation(64)
    weights = source.tensors.read_float(QUERY)[:, order]
    format = make_format(3, 32, ZeroKind.FIXED)
    parameters = make_parameters(format, *minmax(weights, format))
    tiles = pack_tensor(encode_reference(weights, parameters, format), parameters, format).tiles
    arrays, metadata = read_header(out / "model.safetensors")
    content = {name: array.read() for name, array in arrays.items()}
    content[f"{QUERY}.tiles"] = tiles
    added = {f"{QUERY}.order": order.astype(np.int32)}
    files = [content | added] if shards == 1 else [added, content]
    names = ["model.safetensors", "more.safetensors"][:shards]
    for name, held in zip(names, files, strict=True):
        pieces = {
            key: ArrayToWrite(array.dtype, array.shape, lambda array=array: array)
            for key, array in held.items()
        }
        write_file(out / name, pieces, metadata if f"{QUERY}.tiles" in held else {})
    if shards == 2:
        for place, name in enumerate(names):
            (out / name).rename(out / f"part-{place}.safetensors")
        placed = {key: f"part-{place}.safetensors" for place in (0, 1) for key in files[place]}
        write_json(out / "model.safetensors.index.json", {"weight_map": placed})
    report = there_and_back(base, out, tmp_path)
    assert [tensor.changed_share for tensor in report.tensors] == [0] * len(report.tensors)


def test_what_is_not_the_bases_is_carried(tmp_path: Path) -> None:
    """A file of the user's and a norm that was changed after quantization."""
    tensors = make_tensors()
    base = write_checkpoint(tmp_path / "base", tensors)
    other = write_checkpoint(
        tmp_path / "other", tensors | {"model.norm.weight": tensors["model.norm.weight"] * 2}
    )
    out = rounded(other, tmp_path / "out")
    (out / "README.md").write_text("mine")
    there_and_back(base, out, tmp_path)
    pieces = read_delta(tmp_path / "x.delta").pieces
    assert {name for name in pieces if name.startswith("plain/")} == {"plain/model.norm.weight"}
    assert {name for name in pieces if name.startswith("file/")} == {
        "file/README.md",
        "file/config.json",
        "file/manifest.json",
    }


def test_another_base_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base")
    other = write_checkpoint(tmp_path / "other", make_tensors(seed=1))
    opened = open_checkpoint(base)
    make_delta(opened, open_checkpoint(rounded(base, tmp_path / "out")), tmp_path / "x.delta")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="made of another base") as caught:
        apply_delta(open_checkpoint(other), read_delta(tmp_path / "x.delta"), tmp_path / "back")
    assert opened.sha256() in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_tokenizer_of_another_revision_is_refused(tmp_path: Path) -> None:
    """It is no part of the base's hash, but of the restored files'."""
    base = write_checkpoint(tmp_path / "base")
    opened = open_checkpoint(base)
    make_delta(opened, open_checkpoint(rounded(base, tmp_path / "out")), tmp_path / "x.delta")
    (base / "tokenizer_config.json").write_text('{"other": 1}')
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: a restored file is not"):
        apply_delta(opened, read_delta(tmp_path / "x.delta"), tmp_path / "back")
    (base / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="the base lacks a file"):
        apply_delta(opened, read_delta(tmp_path / "x.delta"), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_only_crumb_directories_of_this_base_become_deltas(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base")
    wider = write_checkpoint(tmp_path / "wider", make_tensors(feed_forward=128))
    out = rounded(base, tmp_path / "out")
    for given, other, error, said in (
        (base, base, UsageError, "a delta is made of a crumb directory"),
        (wider, out, CheckpointError, "the base has this tensor in another shape"),
    ):
        with pytest.raises(error, match=said):
            make_delta(open_checkpoint(given), open_checkpoint(other), tmp_path / "x.delta")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "wider", "out"}


def test_an_output_that_is_there_is_kept(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base")
    opened, out = open_checkpoint(base), rounded(base, tmp_path / "out")
    make_delta(opened, open_checkpoint(out), tmp_path / "x.delta")
    kept = (tmp_path / "x.delta").read_bytes()
    with pytest.raises(OutputConflict, match="the output exists"):
        make_delta(opened, open_checkpoint(out), tmp_path / "x.delta")
    with pytest.raises(OutputConflict, match="the output exists"):
        apply_delta(opened, read_delta(tmp_path / "x.delta"), out)
    assert (tmp_path / "x.delta").read_bytes() == kept


Failing = Callable[[int, BaseException], None]


@pytest.fixture
def failing_sync(monkeypatch: pytest.MonkeyPatch) -> Iterator[Failing]:
    """failing_sync(after, error): the disk fails once so many files were synced."""
    sync = os.fsync
    with monkeypatch.context() as patched:

        def install(after: int, error: BaseException) -> None:
            calls = 0

            def failing(handle: int) -> None:
                nonlocal calls
                calls += 1
                if calls > after:
                    raise error
                sync(handle)

            patched.setattr(os, "fsync", failing)

        yield install


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DoesNotFit),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["full", "interrupted"],
)
def test_a_full_disk_or_an_interruption_leaves_nothing(
    error: BaseException,
    raised: type[BaseException],
    tmp_path: Path,
    failing_sync: Failing,
) -> None:
    base = write_checkpoint(tmp_path / "base")
    opened = open_checkpoint(base)
    quantized = open_checkpoint(rounded(base, tmp_path / "out"))
    make_delta(opened, quantized, tmp_path / "x.delta")
    before = sorted(tmp_path.iterdir())
    for after in (0, 3, 5):  # in the first file, the fourth, the directory's own sync
        failing_sync(after, error)
        with pytest.raises(raised):
            apply_delta(opened, read_delta(tmp_path / "x.delta"), tmp_path / "back")
    failing_sync(0, error)
    with pytest.raises(raised):
        make_delta(opened, quantized, tmp_path / "y.delta")
    assert sorted(tmp_path.iterdir()) == before


def test_the_report_counts_what_the_file_holds(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base")
    report = there_and_back(base, rounded(base, tmp_path / "out"), tmp_path)
    delta = read_delta(tmp_path / "x.delta")
    pieces = {
        name: piece.size_bytes for name, piece in delta.pieces.items() if name.startswith("codes/")
    }
    assert sum(tensor.delta_bytes for tensor in report.tensors) == sum(pieces.values())
    query = next(tensor for tensor in report.tensors if tensor.name == QUERY)
    assert query.delta_bytes == pieces[f"codes/{QUERY}/0"]
    assert query.format == make_format(3, 32, ZeroKind.FIXED)
    assert report.delta_bytes == (tmp_path / "x.delta").stat().st_size
    assert report.record.base_sha256 == open_checkpoint(base).sha256()
    assert report.record.quantized_sha256 == open_checkpoint(tmp_path / "back").sha256()
