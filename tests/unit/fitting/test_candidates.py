"""Bytes of every file that a model could become: by hand at every size, and as they are written.

In: configurations of 13, 65, 130 and 300 billion parameters, as headers; the tiny checkpoint.
Out: file bytes and memory beside numbers worked out by hand, and beside the file of a real run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import quantize_line
from hub_server import HeadOfFile
from recorded_models import recorded_configuration, repository_of
from tiny_checkpoint import write_checkpoint

from crumb import quantize
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.opening import open_checkpoint
from crumb.cli.main import main
from crumb.embedded import MODELS
from crumb.fitting.candidates import Candidate, candidates
from crumb.run.load import engine_settings
from crumb.run.memory_plan import CacheKind, MemoryPlan, plan_memory

NOVELLA = MODELS["novella-7m"]
FEW: Any = {
    "effort": "fast",
    "calibration": "excerpt-calibration",
    "sequences": 2,
    "length_tokens": 64,
    "pack": False,
}


def open_outline(folder: Path, name: str | dict[str, Any]) -> Checkpoint:
    """A model, recorded or by its configuration, whose weights are holes."""
    configuration = recorded_configuration(name) if isinstance(name, str) else name
    for file, content in repository_of(configuration).items():
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
# 5 + 16/128, (2 blocks + 1) norms of bf16
BY_HAND = {
    "llama-2-13b": (
        13_015_864_320,
        40 * (4 * 5120**2 + 3 * 5120 * 13824) * 4.125 / 8
        + 2 * 32000 * 5120 * 5.125 / 8
        + 81 * 5120 * 2,
    ),
    "llama-65b": (
        65_285_660_672,
        80 * (4 * 8192**2 + 3 * 8192 * 22016) * 4.125 / 8
        + 2 * 32000 * 8192 * 5.125 / 8
        + 161 * 8192 * 2,
    ),
    "llama-130b": (
        129_435_881_472,
        71 * (4 * 12288**2 + 3 * 12288 * 32768) * 4.125 / 8
        + 2 * 32000 * 12288 * 5.125 / 8
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
    ends = 2 * 128256 * 16384 * 4.125 / 8
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


MIXTRAL_8X7B = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
}


def test_every_expert_of_a_mixture_takes_memory(tmp_path: Path) -> None:
    checkpoint = open_outline(tmp_path, MIXTRAL_8X7B)
    assert checkpoint.plan.parameters() == 46_702_792_704
    memory = memory_of(checkpoint, "int4-g128-fixed", 4096)
    experts = 32 * 8 * 3 * 4096 * 14336
    attention = 32 * (2 * 4096**2 + 2 * 4096 * 1024)
    small = 2 * (32 * 8 * 4096 + 65 * 4096)  # routers and norms, bf16
    ends = 2 * 32000 * 4096 * 5.125 / 8
    assert memory.weights_bytes == (experts + attention) * 4.125 / 8 + ends + small
    assert memory.cache_bytes == 32 * 4096 * 2 * (8 * 128) * 2


DEEPSEEK_V2_LITE = {
    "model_type": "deepseek_v2",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "vocab_size": 102400,
    "max_position_embeddings": 32768,
}


def test_latent_attention_keeps_one_short_row_for_all_heads(tmp_path: Path) -> None:
    checkpoint = open_outline(tmp_path, DEEPSEEK_V2_LITE)
    assert checkpoint.plan.parameters() == 15_706_484_224
    memory = memory_of(checkpoint, "int4-g64-fixed", 32768)
    assert memory.cache_bytes == 27 * 32768 * (512 + 64) * 2  # not 2 * 16 * 192 for each token
    assert memory.cache_bytes < 1.02e9


def test_a_window_does_not_shorten_the_cache(tmp_path: Path) -> None:
    """The engine keeps what a window has passed, so the plan says so."""
    gemma = {
        "model_type": "gemma2",
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "sliding_window": 4096,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "hidden_activation": "gelu_pytorch_tanh",
    }
    checkpoint = open_outline(tmp_path, gemma)
    assert checkpoint.plan.parameters() == 9_241_705_984
    memory = memory_of(checkpoint, "int4-g128-fixed", 8192)
    assert memory.cache_bytes == 42 * 8192 * 2 * (8 * 256) * 2
    blocks = 42 * (3584 * (16 + 8 + 8 + 16) * 256 + 3 * 3584 * 14336)
    norms = (4 * 42 + 1) * 3584
    assert memory.weights_bytes == blocks * 4.125 / 8 + 256000 * 3584 * 5.125 / 8 + 2 * norms


def test_file_bytes_are_exactly_those_that_a_quantization_writes(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "tiny")
    for bits in (2, 3, 4, 8):
        out = tmp_path / f"out{bits}"
        line = quantize_line(source, out, bits=bits, group_size=32, embedding=None)
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


def test_file_bytes_of_learned_tables_are_exact_before_anything_is_learned(tmp_path: Path) -> None:
    row = candidate(open_checkpoint(NOVELLA), "super2-g32-fixed")
    out = quantize(NOVELLA, out=tmp_path / "out", bits=2, codes="super", **FEW).out
    assert row.file_bytes == (out / "model.safetensors").stat().st_size
    (lying,) = candidates(open_checkpoint(out))
    assert row.weights_bytes == lying.weights_bytes
    assert (lying.codes, lying.name) == ("super", "super2-g32-fixed")


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


def test_a_mix_is_called_by_the_bits_it_comes_to(tmp_path: Path) -> None:
    out, names = tmp_path / "out", {"down_proj": "int4-g32-fixed", "q_proj": "float"}
    quantize(NOVELLA, out=out, bits=3, group_size=32, method="round", tensor=names, pack=False)
    (row,) = candidates(open_checkpoint(out))
    sizes = {"gate": 768, "up": 768, "k": 128, "v": 128, "o": 256}
    assert row.name == f"mix {row.block_bits:.1f} bits"
    weights = [(256 * width, 3.5) for width in sizes.values()]
    weights += [(768 * 256, 4.5), (256 * 256, 16.0)]
    bits = sum(count * each for count, each in weights) / sum(count for count, _ in weights)
    assert row.block_bits == pytest.approx(bits, rel=0.01)


def test_rows_of_the_embedded_model_shrink_with_their_bits() -> None:
    rows = candidates(open_checkpoint(NOVELLA))
    assert len(rows) == 16
    sizes = [row.file_bytes for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert [row.weights_bytes for row in rows] == sorted(
        (row.weights_bytes for row in rows), reverse=True
    )
