"""Bytes of every file that a model could become: by hand at every size, and as they are written.

In: configurations of 13, 65, 130 and 300 billion parameters, as headers; the tiny checkpoint.
Out: file bytes and memory beside numbers worked out by hand, and beside the file of a real run.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import quantize_line
from hub_server import HeadOfFile
from recorded_models import recorded_configuration, repository_of
from tiny_checkpoint import write_checkpoint

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.opening import open_checkpoint
from crumb.cli.main import main
from crumb.embedded import MODELS
from crumb.fitting.candidates import Candidate, candidates
from crumb.run.load import engine_settings
from crumb.run.memory_plan import CacheKind, MemoryPlan, plan_memory


def open_outline(folder: Path, name: str) -> Checkpoint:
    """A recorded model whose weights are holes."""
    for file, content in repository_of(recorded_configuration(name)).items():
        head = content if isinstance(content, HeadOfFile) else HeadOfFile(content, len(content))
        with (folder / file).open("wb") as written:
            written.write(head.content)
            written.truncate(head.size_bytes)
    return open_checkpoint(folder)


def candidate(checkpoint: Checkpoint, name: str) -> Candidate:
    return next(each for each in candidates(checkpoint) if each.name == name)


def memory_of(checkpoint: Checkpoint, name: str, context: int, sequences: int = 1) -> MemoryPlan:
    each = candidate(checkpoint, name)
    settings = engine_settings(checkpoint.plan, context, sequences, CacheKind.F16)
    return plan_memory(checkpoint.plan, each.formats, each.weights_bytes, settings)


# blocks x (4 hidden^2 + 3 hidden x feed-forward) weights at 4 + 16/128 bits, embedding and head at
# 8 + 16/128, (2 blocks + 1) norms of bf16
BY_HAND = {
    "llama-2-13b": (
        13_015_864_320,
        40 * (4 * 5120**2 + 3 * 5120 * 13824) * 4.125 / 8
        + 2 * 32000 * 5120 * 8.125 / 8
        + 81 * 5120 * 2,
    ),
    "llama-65b": (
        65_285_660_672,
        80 * (4 * 8192**2 + 3 * 8192 * 22016) * 4.125 / 8
        + 2 * 32000 * 8192 * 8.125 / 8
        + 161 * 8192 * 2,
    ),
    "llama-130b": (
        129_435_881_472,
        71 * (4 * 12288**2 + 3 * 12288 * 32768) * 4.125 / 8
        + 2 * 32000 * 12288 * 8.125 / 8
        + 143 * 12288 * 2,
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_bytes_of_large_models_at_4_bits_are_those_worked_out_by_hand(
    name: str, tmp_path: Path
) -> None:
    checkpoint = open_outline(tmp_path, name)
    parameters, by_hand = BY_HAND[name]
    assert checkpoint.plan.parameters() == parameters
    row = candidate(checkpoint, "int4-g128-fixed")
    assert row.weights_bytes == by_hand
    assert 0 < row.file_bytes - by_hand < 1 << 20  # headers
    lying = candidates(checkpoint)[0]
    assert (lying.name, lying.weights_bytes) == ("bfloat16", 2 * parameters)


def test_130_billion_parameters_at_4_bits_take_67_gigabytes(tmp_path: Path) -> None:
    row = candidate(open_outline(tmp_path, "llama-130b"), "int4-g128-fixed")
    assert round(row.file_bytes / 1e9) == 67


def test_300_billion_parameters_at_2_bits_fit_80_gib_but_not_80_gb(tmp_path: Path) -> None:
    checkpoint = open_outline(tmp_path, "llama-300b")
    assert round(checkpoint.plan.parameters() / 1e9) == 301
    memory = memory_of(checkpoint, "int2-g128-fixed", 4096)
    blocks = 93 * (2 * 16384**2 + 2 * 16384 * 1024 + 3 * 16384 * 53248) * 2.125 / 8
    ends = 2 * 128256 * 16384 * 8.125 / 8
    assert memory.weights_bytes == blocks + ends + 187 * 16384 * 2
    assert memory.cache_bytes == 93 * 4096 * 2 * (8 * 128) * 2  # keys and values, 2 bytes each
    assert 80e9 < memory.total_bytes < 80 * 2**30


@pytest.mark.parametrize(("sequences", "context"), [(1, 4096), (4, 4096), (1, 1024)])
def test_the_cache_is_that_of_every_sequence_at_its_whole_context(
    sequences: int, context: int, tmp_path: Path
) -> None:
    checkpoint = open_outline(tmp_path, "llama-2-13b")
    memory = memory_of(checkpoint, "int4-g128-fixed", context, sequences)
    assert memory.cache_bytes == 40 * sequences * context * 2 * 5120 * 2


def test_file_bytes_are_exactly_those_that_a_quantization_writes(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "tiny")
    for bits in (2, 3, 4, 8):
        out = tmp_path / f"out{bits}"
        line = quantize_line(source, out, bits=bits, group_size=32, method="round")
        assert main(line) == 0
        offered = [
            each
            for each in candidates(open_checkpoint(source))
            if each.name == f"int{bits}-g32-fixed"
        ]
        for each in offered:  # 8 bits are offered in groups of 128 alone, wider than this model
            assert each.file_bytes == (out / "model.safetensors").stat().st_size
            assert each.weights_bytes == candidates(open_checkpoint(out))[0].weights_bytes
        assert len(offered) == (bits < 8)


def test_a_format_wider_than_a_matrix_is_not_offered(tmp_path: Path) -> None:
    names = [each.name for each in candidates(open_checkpoint(write_checkpoint(tmp_path / "tiny")))]
    assert "int4-g32-fixed" in names
    assert "int4-g128-fixed" not in names


def test_a_quantized_file_is_offered_as_it_lies_alone(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "tiny")
    assert main(quantize_line(source, tmp_path / "out", method="round")) == 0
    (row,) = candidates(open_checkpoint(tmp_path / "out"))
    assert row.lies_here
    assert row.name == "int3-g32-fixed"
    assert row.block_bits == pytest.approx(3.5, rel=0.01)


def test_rows_of_the_embedded_model_shrink_with_their_bits() -> None:
    rows = candidates(open_checkpoint(MODELS["novella-7m"]))
    assert len(rows) == 13
    sizes = [row.file_bytes for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert [row.weights_bytes for row in rows] == sorted(
        (row.weights_bytes for row in rows), reverse=True
    )
