"""Models as GGUF files and back: plans, weights, logits, orders of rows, what cannot be expressed.

In: tiny models of every family that llama.cpp loads. Out: files whose models are the same.
A tokenizer is not needed here; other tests have one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_configurations import DENSE, FOR_GGUF
from exhaustive import covering
from gguf_exports import source, written
from gguf_file import File, Tensor, array, scalar, text, tiny_model, wide_model
from mixture_configurations import MIXTURES_FOR_GGUF
from numpy.typing import NDArray
from recurrent_configurations import HYBRIDS_FOR_GGUF, RECURRENT
from tiny_checkpoint import write_checkpoint
from tiny_models import (
    GPT_NEOX,
    GPTJ,
    LLAMA,
    LLAMA3,
    MISTRAL,
    QWEN2,
    WHOLE_HEADS,
    YARN,
    make_tokens,
    tolerance,
    write_model,
)

from crumb.architectures.registry import plan_of
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.gguf.container import read_gguf
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.safetensors import StoredArray
from crumb.checkpoints.tensor_map import StoredCodes, StoredFloats
from crumb.errors import CheckpointError, UnknownFamily, UsageError
from crumb.pipeline import QuantizeRequest, quantize
from crumb.run.model import Model
from crumb.solve.problem import Method, SolveSettings

NO_WINDOW = {"use_sliding_window": False}
LLAMA_31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
WIDE_HEADS = {"head_dim": 64, "rope_theta": 500000.0}

MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama-tied": LLAMA | WHOLE_HEADS | {"tie_word_embeddings": True},
    "llama-biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "llama-linear": LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    "llama-llama3": LLAMA | WHOLE_HEADS | {"rope_scaling": LLAMA3},
    "llama-3.1": LLAMA | WIDE_HEADS | {"rope_scaling": LLAMA_31},
    "llama-3.2": LLAMA | WIDE_HEADS | {"rope_scaling": LLAMA_31 | {"factor": 32.0}},
    "llama-yarn": LLAMA | {"rope_scaling": YARN},
    "llama-yarn-magnitude": LLAMA | {"rope_scaling": YARN | {"attention_factor": 1.25}},
    "mistral": MISTRAL,
    "qwen2": QWEN2 | NO_WINDOW,
    "qwen2-tied": QWEN2 | NO_WINDOW | {"tie_word_embeddings": True},
    "gpt_neox": GPT_NEOX,
    "gpt_neox-sequential": GPT_NEOX | {"use_parallel_residual": False, "rotary_pct": 0.45},
    # Two of 98 features: 98 * (2 / 98) is less than 2 in floating point.
    "gpt_neox-few": GPT_NEOX | {"hidden_size": 294, "rotary_pct": 0.021},
    "gpt_neox-linear": GPT_NEOX
    | {"rotary_pct": 1.0, "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    **FOR_GGUF,
    **MIXTURES_FOR_GGUF,
    **HYBRIDS_FOR_GGUF,
}


pytestmark = pytest.mark.usefixtures("without_tokenizer")


def in_other_form(name: str, checkpoint: Checkpoint) -> bool:
    """Whether a file holds other numbers in place of a tensor's."""
    families = ("gemma", "gemma2", "gemma3_text", "qwen3_next")
    is_norm = checkpoint.plan.family in families and "norm" in name
    return is_norm or name.endswith("A_log")


@pytest.mark.parametrize("name", covering(MODELS, lambda name: (MODELS[name]["model_type"],)))
def test_a_model_comes_back_with_its_plan_weights_and_logits(name: str, tmp_path: Path) -> None:
    ours = source(tmp_path / "source", MODELS[name])
    theirs = open_checkpoint(written(ours, tmp_path / "model.gguf"))
    assert str(theirs.plan).splitlines() == str(ours.plan).splitlines()
    for spec in ours.plan.tensors():
        # A file holds 1 + w of a norm around 0: two roundings, of numbers below 4; e^w of a rate.
        apart = 2.0**-21 if in_other_form(spec.name, ours) else 0.0
        expected = ours.tensors.read_float(spec.name)
        found = theirs.tensors.read_float(spec.name)
        np.testing.assert_allclose(found, expected, rtol=0, atol=apart)
        some = theirs.tensors.read_float(spec.name, slice(3, 9))
        np.testing.assert_array_equal(some, found[3:9])
    tokens = make_tokens(MODELS[name])
    expected = Model(ours).logits(tokens)
    # The same plan over the same weights does the same arithmetic.
    exact = not any(in_other_form(spec.name, ours) for spec in ours.plan.tensors())
    allowed = 0.0 if exact else tolerance(ours.plan, expected)
    np.testing.assert_allclose(Model(theirs).logits(tokens), expected, rtol=0, atol=allowed)


@pytest.mark.parametrize("type", ["F16", "BF16"])
def test_matrices_may_be_halves_while_vectors_stay_f32(type: str, tmp_path: Path) -> None:
    ours = source(tmp_path / "source", LLAMA | {"attention_bias": True})
    theirs = open_checkpoint(written(ours, tmp_path / "model.gguf", type))
    stored = read_gguf(tmp_path / "model.gguf")
    for spec in ours.plan.tensors():
        entry = theirs.tensors.entry(spec.name)
        assert isinstance(entry, StoredArray | StoredFloats)
        kind = entry.dtype if spec.matrix else np.dtype(np.float32)
        expected = ours.tensors.read_float(spec.name).astype(kind).astype(np.float32)
        np.testing.assert_array_equal(theirs.tensors.read_float(spec.name), expected)
    for tensor in stored.tensors.values():
        assert tensor.type.name == ("F32" if len(tensor.shape) == 1 else type)
    assert stored.metadata.values["general.file_type"] == {"F16": 1, "BF16": 32}[type]


def test_a_window_that_cuts_nothing_off_is_left_out(tmp_path: Path) -> None:
    """A mistral without one is a llama."""
    for window in (None, 160):
        ours = source(tmp_path / f"source-{window}", MISTRAL | {"sliding_window": window})
        theirs = open_checkpoint(written(ours, tmp_path / f"{window}.gguf"))
        assert theirs.configuration["model_type"] == "llama"
        tokens = make_tokens(LLAMA)
        np.testing.assert_array_equal(Model(theirs).logits(tokens), Model(ours).logits(tokens))


def raw_rows(path: Path, name: str) -> NDArray[np.float32]:
    """A tensor of F32 as it lies in the file."""
    tensor = read_gguf(path).tensors[name]
    found: NDArray[np.float32] = tensor.raw.read().view(np.float32)
    return found if len(tensor.shape) == 2 else found[0]


def test_rows_of_query_and_key_alternate_between_the_halves_of_a_head(tmp_path: Path) -> None:
    ours = source(tmp_path / "source", LLAMA | {"attention_bias": True})
    written(ours, tmp_path / "model.gguf")
    for short, part, heads in (("q", "q_proj", 3), ("k", "k_proj", 1), ("v", "v_proj", 0)):
        for kind in ("weight", "bias"):
            rows = ours.tensors.read_float(f"model.layers.1.self_attn.{part}.{kind}")
            lie = raw_rows(tmp_path / "model.gguf", f"blk.1.attn_{short}.{kind}")
            if not heads:
                np.testing.assert_array_equal(lie, rows)
            for head in range(heads):
                here, half = 10 * head, 5
                for pair in range(half):
                    np.testing.assert_array_equal(lie[here + 2 * pair], rows[here + pair])
                    np.testing.assert_array_equal(
                        lie[here + 2 * pair + 1], rows[here + half + pair]
                    )


def test_rows_of_a_fused_projection_go_part_by_part(tmp_path: Path) -> None:
    ours = source(tmp_path / "source", GPT_NEOX)
    written(ours, tmp_path / "model.gguf")
    heads, width = 3, 14
    for kind in ("weight", "bias"):
        rows = ours.tensors.read_float(f"gpt_neox.layers.2.attention.query_key_value.{kind}")
        lie = raw_rows(tmp_path / "model.gguf", f"blk.2.attn_qkv.{kind}")
        for part in range(3):
            for head in range(heads):
                there, here = (part * heads + head) * width, (head * 3 + part) * width
                np.testing.assert_array_equal(lie[there : there + width], rows[here : here + width])


def test_rows_of_qwen2_lie_as_ours_do(tmp_path: Path) -> None:
    ours = source(tmp_path / "source", QWEN2 | NO_WINDOW)
    theirs = open_checkpoint(written(ours, tmp_path / "model.gguf"))
    entries = theirs.tensors.entries.values()
    assert {type(entry) for entry in entries} == {StoredArray}


INEXPRESSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "a scan with biases": (RECURRENT["mamba2-biases"], "no bias of scan_output"),
    "taps without a bias": (
        RECURRENT["mamba2"] | {"use_conv_bias": False},
        "a bias of scan_taps, found none",
    ),
    "a width of a scan": (RECURRENT["bamba"] | {"mamba_expand": 3}, "mamba_expand 2, found 3"),
    "a scan with a bias": (RECURRENT["bamba-biases"], "no bias of scan_output"),
    "a granite that rotates": (RECURRENT["granitemoehybrid"], "granitehybrid cannot express"),
    "a factor of experts": (RECURRENT["lfm2_moe"], "routed_scaling_factor 1.0, found 1.7"),
    "biases of convolutions": (RECURRENT["lfm2-biases"], "no bias of mixer_output"),
    "values that are not as wide as keys": (
        RECURRENT["qwen3_next"],
        "linear_value_head_dim 12, found 7",
    ),
    "family": (GPTJ, "does not load this family"),
    "activation": (LLAMA | {"hidden_act": "relu"}, "expected activation silu, found relu"),
    "window of some blocks": (QWEN2, "has no sliding window"),
    "long heads": (QWEN2 | NO_WINDOW | {"head_dim": 20}, "make up the hidden size"),
    "windows of another period": (DENSE["cohere2"], "cohere2 cannot express this model"),
    "no caps": (DENSE["gemma2-uncapped"], "gemma2 cannot express this model"),
    "a head of its own": (DENSE["gemma-old"], "a head that is the embedding"),
    "norms of heads": (DENSE["phi-norms"], "_norm in so few blocks"),
    "rotating blocks": (DENSE["smollm3"], "smollm3 cannot express this model"),
    "scale of scores": (DENSE["gemma3_text"], "gemma3 cannot express this model"),
    "biases": (DENSE["falcon-new"], "expected no bias of"),
    "a bias behind attention": (DENSE["seed_oss-biases"], "expected no bias of"),
    "slopes of falcon": (DENSE["falcon-slopes"] | {"bias": False}, "falcon cannot express"),
    "sums with norms": (DENSE["bloom-normed"], "bloom cannot express this model"),
    "scales by depth": (
        DENSE["gpt2"] | {"scale_attn_by_inverse_layer_idx": True},
        "gpt2 cannot express this model",
    ),
    "no biases": (GPT_NEOX | {"attention_bias": False}, "a bias of qkv"),
    "llama3 of qwen2": (QWEN2 | NO_WINDOW | {"rope_scaling": LLAMA3}, "no such rotary scaling"),
    "yarn with betas": (
        LLAMA | {"rope_scaling": YARN | {"beta_fast": 12.0}},
        "no such rotary scaling",
    ),
    "yarn not truncated": (
        LLAMA | {"rope_scaling": YARN | {"truncate": False}},
        "no such rotary scaling",
    ),
}


@pytest.mark.parametrize(
    ("configuration", "said"), INEXPRESSIBLE.values(), ids=INEXPRESSIBLE.keys()
)
def test_what_llama_cpp_cannot_express_is_refused_before_anything_is_written(
    configuration: dict[str, Any], said: str, tmp_path: Path
) -> None:
    ours = source(tmp_path / "source", configuration)
    with pytest.raises(UsageError) as caught:
        written(ours, tmp_path / "model.gguf")
    assert said in str(caught.value)
    assert not (tmp_path / "model.gguf").exists()


def test_a_type_whose_blocks_do_not_divide_a_row_is_refused_by_tensor(tmp_path: Path) -> None:
    ours = source(tmp_path / "source", LLAMA)
    with pytest.raises(UsageError, match=r"token_embd\.weight.*divisible by 32, found 39"):
        written(ours, tmp_path / "model.gguf", "Q8_0")


def test_a_weight_beyond_f16_is_not_written_as_infinite(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    ours = source(folder, LLAMA)
    name = "model.layers.0.mlp.up_proj.weight"
    entry = ours.tensors.entry(name)
    assert isinstance(entry, StoredArray)
    raw = bytearray(entry.path.read_bytes())
    raw[entry.offset_bytes : entry.offset_bytes + 4] = np.float32(70000.0).tobytes()
    entry.path.write_bytes(raw)
    with pytest.raises(UsageError, match=r"up_proj.*does not fit F16"):
        written(open_checkpoint(folder), tmp_path / "model.gguf", "F16")


def opened(file: File, path: Path) -> Checkpoint:
    path.write_bytes(file.raw())
    return open_checkpoint(path)


def test_keys_become_the_configuration(tmp_path: Path) -> None:
    file = tiny_model().with_keys(
        llama__attention__head_count_kv=scalar("u64", 1),
        llama__rope__freq_base=scalar("f32", 500000.0),
        llama__attention__layer_norm_rms_epsilon=scalar("f32", 1e-6),
        tokenizer__ggml__bos_token_id=scalar("u32", 1),
        llama__attention__key_length=scalar("u32", 4),
    )
    file = file.with_tensor("blk.0.attn_k.weight", sizes=(8, 4), data=bytes(128))
    file = file.with_tensor("blk.0.attn_v.weight", sizes=(8, 4), data=bytes(128))
    found = opened(file, tmp_path / "a.gguf").configuration
    expected = {
        "model_type": "llama",
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "rms_norm_eps": 1e-6,  # the shortest decimal of the f32, not 9.99999997e-07
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "vocab_size": 8,
    }
    assert {key: found[key] for key in expected} == expected


def test_the_tokens_say_how_large_the_vocabulary_is(tmp_path: Path) -> None:
    file = tiny_model().without("llama__vocab_size")
    file = file.with_keys(tokenizer__ggml__tokens=array("string", "abcdefgh"))
    assert opened(file, tmp_path / "a.gguf").plan.vocabulary == 8


def test_an_output_of_its_own_is_not_tied(tmp_path: Path) -> None:
    embedding = tiny_model().tensors[0]
    file = replace(
        tiny_model(), tensors=(*tiny_model().tensors, replace(embedding, name="output.weight"))
    )
    checkpoint = opened(file, tmp_path / "a.gguf")
    assert not checkpoint.configuration["tie_word_embeddings"]
    assert "lm_head.weight" in checkpoint.tensors.entries


def converted_factors(dimensions: int, theta: float, factor: float) -> NDArray[np.float32]:
    """llama3's factors as a converter makes them, in f32 throughout, for a context of 8192."""
    places = np.arange(0, dimensions, 2, dtype=np.float32) / np.float32(dimensions)
    waves = 2 * np.pi / (1 / np.float32(theta) ** places)
    smooth = np.clip((8192 / waves - 1) / 3, 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


@pytest.mark.parametrize(("dimensions", "factor"), [(128, 8.0), (64, 32.0)])
def test_factors_of_published_models_are_the_published_scaling(
    dimensions: int, factor: float, tmp_path: Path
) -> None:
    """Llama 3.1 and 3.2: their files hold the factors, not the settings."""
    data = converted_factors(dimensions, 5e5, factor)
    file = tiny_model().with_keys(
        llama__rope__freq_base=scalar("f32", 5e5),
        llama__attention__key_length=scalar("u32", dimensions),
        llama__attention__value_length=scalar("u32", dimensions),
    )
    for part in ("q", "k", "v"):
        raw = bytes(4 * 8 * 2 * dimensions)
        file = file.with_tensor(f"blk.0.attn_{part}.weight", sizes=(8, 2 * dimensions), data=raw)
    raw = bytes(4 * 8 * 2 * dimensions)
    file = file.with_tensor("blk.0.attn_output.weight", sizes=(2 * dimensions, 8), data=raw)
    factors = Tensor("rope_freqs.weight", (dimensions // 2,), data.tobytes())
    file = replace(file, tensors=(factors, *file.tensors))
    found = opened(file, tmp_path / "a.gguf").configuration
    assert found["rope_scaling"] == LLAMA_31 | {"factor": factor}


def test_factors_that_are_all_1_scale_nothing(tmp_path: Path) -> None:
    ones = Tensor("rope_freqs.weight", (2,), np.ones(2, "<f4").tobytes())
    file = replace(tiny_model(), tensors=(*tiny_model().tensors, ones))
    assert opened(file, tmp_path / "a.gguf").configuration["rope_scaling"] is None


SCALINGS: dict[str, tuple[dict[str, bytes], Any]] = {
    "none": ({"type": text("none"), "factor": scalar("f32", 4)}, None),
    "factor alone": ({"factor": scalar("f32", 4)}, {"rope_type": "linear", "factor": 4.0}),
    "factor of 1": ({"type": text("linear"), "factor": scalar("f32", 1)}, None),
    "factor of 0": ({"factor": scalar("f32", 0)}, None),
    "yarn": (
        {
            "type": text("yarn"),
            "factor": scalar("f32", 4),
            "original_context_length": scalar("u32", 4),
            "yarn_beta_fast": scalar("f32", 16),
        },
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 4,
            "beta_fast": 16.0,
        },
    ),
}


@pytest.mark.parametrize(("keys", "expected"), SCALINGS.values(), ids=SCALINGS.keys())
def test_scaling_keys_become_the_rope_scaling(
    keys: dict[str, bytes], expected: object, tmp_path: Path
) -> None:
    full = {f"llama__rope__scaling__{key}": value for key, value in keys.items()}
    found = opened(tiny_model().with_keys(**full), tmp_path / "a.gguf").configuration
    assert found["rope_scaling"] == expected


def test_an_architecture_without_a_row_names_those_there_are(tmp_path: Path) -> None:
    file = tiny_model().with_keys(general__architecture=text("gptj"))
    with pytest.raises(
        UnknownFamily, match=r"expected one of llama, llama4, qwen2, gptneox, .*, found 'gptj'"
    ):
        opened(file, tmp_path / "a.gguf")


def test_a_quantized_matrix_keeps_its_codes_and_a_vector_is_decoded(tmp_path: Path) -> None:
    blocks = np.random.default_rng(2).integers(0, 256, (8, 18), dtype=np.uint8)
    blocks[:, :2] = np.array([0.5], "<f2").view(np.uint8)
    file = wide_model(2, 18, blocks.tobytes())
    file = file.with_tensor("output_norm.weight", type=2, data=blocks[:1].tobytes())
    checkpoint = opened(file, tmp_path / "a.gguf")
    matrix = checkpoint.tensors.entry("model.embed_tokens.weight")
    assert isinstance(matrix, StoredCodes)
    assert (matrix.source, matrix.format.name) == ("Q4_0", "int4-g32-fixed")
    codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    expected = 0.5 * (codes.astype(np.float32) - 8)
    found = checkpoint.tensors.read_float("model.embed_tokens.weight")
    np.testing.assert_array_equal(found, expected)
    norm = checkpoint.tensors.entry("model.norm.weight")
    assert isinstance(norm, StoredFloats)
    np.testing.assert_array_equal(checkpoint.tensors.read_float("model.norm.weight"), expected[0])


@pytest.mark.parametrize(("exponent", "kind"), [(120, StoredCodes), (200, StoredFloats)])
def test_powers_of_two_beyond_fp16_are_read_as_floats(
    exponent: int, kind: type, tmp_path: Path
) -> None:
    blocks = np.full((8, 17), 0x21, np.uint8)
    blocks[:, 0] = 120
    blocks[5, 0] = exponent
    checkpoint = opened(wide_model(39, 17, blocks.tobytes()), tmp_path / "a.gguf")
    name = "model.embed_tokens.weight"
    assert isinstance(checkpoint.tensors.entry(name), kind)
    row = checkpoint.tensors.read_float(name, slice(5, 6))
    np.testing.assert_array_equal(row[0, 0], np.ldexp(1.0, exponent - 128))


def test_a_directory_may_hold_one_gguf_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(tiny_model().raw())
    assert open_checkpoint(tmp_path).weight_files == (tmp_path / "model.gguf",)


def test_a_directory_with_a_configuration_is_no_gguf_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"")
    write_model(tmp_path, LLAMA)
    assert open_checkpoint(tmp_path).weight_files == (tmp_path / "model.safetensors",)


def test_the_plan_of_a_file_is_the_plan_of_its_configuration(tmp_path: Path) -> None:
    checkpoint = opened(tiny_model(), tmp_path / "a.gguf")
    assert checkpoint.plan == plan_of(checkpoint.configuration)
    assert checkpoint.files.read("config.json") is not None
    assert checkpoint.files.read("tokenizer.json") is None
    assert (
        checkpoint.sha256()
        != opened(tiny_model().with_keys(other=text("x")), tmp_path / "b.gguf").sha256()
    )


def test_a_tensor_that_the_plan_has_no_use_for_is_refused(tmp_path: Path) -> None:
    extra = Tensor("blk.0.attn_norm.bias", (8,), bytes(32))
    file = replace(tiny_model(), tensors=(*tiny_model().tensors, extra))
    with pytest.raises(CheckpointError, match=r"no llama model has.*blk\.0\.attn_norm\.bias"):
        opened(file, tmp_path / "a.gguf")


def rounded(model: Path, out: Path) -> Checkpoint:
    """A quick quantization by rounding."""
    settings = SolveSettings(method=Method.ROUND)
    quantize(QuantizeRequest(str(model), out, bits=3, group_size=32, solve=settings))
    return open_checkpoint(out)


def test_a_float_file_is_quantized_as_its_directory_is(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source")
    written(open_checkpoint(folder), tmp_path / "model.gguf", "F16")
    from_folder = rounded(folder, tmp_path / "a")
    from_file = rounded(tmp_path / "model.gguf", tmp_path / "b")
    assert from_file.plan == from_folder.plan
    for spec in from_folder.plan.tensors():
        expected = from_folder.tensors.read_float(spec.name)
        np.testing.assert_array_equal(from_file.tensors.read_float(spec.name), expected)


def test_a_quantized_file_is_no_source(tmp_path: Path) -> None:
    for name, exponent in (("model", 120), ("floats", 200)):
        blocks = np.full((8, 17), 120, np.uint8)
        blocks[3, 0] = exponent
        (tmp_path / f"{name}.gguf").write_bytes(wide_model(39, 17, blocks.tobytes()).raw())
    for name, kind in (("model", StoredCodes), ("floats", StoredFloats)):
        path = tmp_path / f"{name}.gguf"
        entry = open_checkpoint(path).tensors.entry("model.embed_tokens.weight")
        assert isinstance(entry, kind)
        with pytest.raises(UsageError, match="quantized already"):
            rounded(path, tmp_path / "out")
