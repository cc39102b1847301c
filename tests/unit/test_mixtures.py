"""A mixture from its files to a quantized directory that runs: what is read, kept float, refused.

In: tiny models of tests/architectures. Out: both executors agree on the quantized model; routers
stay float, every expert is quantized; experts that were never used are not counted as read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

sys.path.append(str(Path(__file__).parents[1] / "architectures"))
from mixture_configurations import MIXTURES_FOR_GGUF
from tiny_models import VARIANTS, make_tokens, write_model

import crumb
from crumb.checkpoints.gguf import writer
from crumb.checkpoints.gguf.container import read_gguf
from crumb.checkpoints.opening import open_checkpoint
from crumb.operations.operation import OperationCost
from crumb.run.engine import Engine, Rows, StepPart
from crumb.run.memory_plan import ActivationKind, CacheKind, EngineSettings
from crumb.run.model import open_model
from crumb.run.step_work import work_of


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return write_model(tmp_path / "model", VARIANTS["qwen3_moe"])


def test_experts_are_quantized_each_and_routers_stay_float(mixture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = crumb.quantize(str(mixture), bits=4, group_size="row", method="round", out=str(out))
    names = set(result.manifest["tensors"])
    expert = "model.layers.{}.mlp.experts.{}.{}_proj.weight"
    parts = ((block, each, role) for block in range(3) for each in range(7) for role in ROLES)
    assert {expert.format(*part) for part in parts} <= names
    assert not any("mlp.gate.weight" in name for name in names)

    tokens = make_tokens(VARIANTS["qwen3_moe"])[0, :40]
    expected = open_model(str(out)).logits(tokens[None])[0]
    settings = EngineSettings(
        step_tokens=64, logits_rows=64, cache=CacheKind.F32, activations=ActivationKind.F32
    )
    engine = Engine(open_checkpoint(out), settings)
    sequence = engine.begin(tokens.tolist(), reuse=False)
    logits = engine.run([StepPart(sequence, tokens.tolist(), Rows.ALL)])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


ROLES = ("gate", "up", "down")


def test_a_step_reads_the_experts_that_its_tokens_use(mixture: Path) -> None:
    work = work_of(open_checkpoint(mixture))
    experts = 3 * 7 * 3 * 39 * 22 * 4
    assert work.weight_bytes - work.bytes_read(1) == pytest.approx(experts * 4 / 7)
    assert work.bytes_read(200) == pytest.approx(work.weight_bytes)
    assert OperationCost(parts=8, parts_used=2).share_read(2) == pytest.approx(1 - 0.75**2)


@pytest.mark.parametrize(("cache", "element"), [(CacheKind.F32, 4), (CacheKind.F16, 2)])
def test_the_cache_of_a_latent_is_planned_and_found_again(
    cache: CacheKind, element: int, tmp_path: Path
) -> None:
    """It has the latent and the rotated key of each token, once for all heads."""
    configuration = VARIANTS["deepseek_v3"]
    checkpoint = open_checkpoint(write_model(tmp_path, configuration))
    settings = EngineSettings(context_tokens=160, step_tokens=64, logits_rows=64, cache=cache)
    engine = Engine(checkpoint, settings)
    page = -(-16 * (21 + 6) * element // 64) * 64  # of 16 tokens, whole lines of memory
    assert engine.memory.cache_bytes == 3 * 10 * page
    text = make_tokens(configuration)[0, :70].tolist()

    def last_rows() -> tuple[int, np.ndarray]:
        sequence = engine.begin(text)
        for begin in range(sequence.cached_tokens, 64, 32):
            engine.run([StepPart(sequence, text[begin : begin + 32], Rows.LAST)])
        rows = engine.run([StepPart(sequence, text[64:], Rows.ALL)]).copy()
        engine.end(sequence)
        return sequence.cached_tokens, rows

    first, again = last_rows(), last_rows()
    assert (first[0], again[0]) == (0, 64)
    np.testing.assert_array_equal(again[1], first[1])


def resident_of(path: Path) -> int:
    """Bytes of a file's mapping that this process has touched."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    resident = [
        next(each for each in lines if "Rss:" in each) for line in lines if str(path) in line
    ]
    return 1024 * sum(int(line.split()[1]) for line in resident)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not say")
def test_experts_that_no_token_uses_are_never_read(tmp_path: Path) -> None:
    """Of 32 a step of one token uses two in each of two blocks, read as they lie in the file."""
    sizes = {"num_experts": 32, "num_experts_per_tok": 2, "moe_intermediate_size": 512}
    sizes |= {"hidden_size": 256, "num_hidden_layers": 2}
    folder = write_model(tmp_path, dict(VARIANTS["qwen3_moe"]) | sizes)
    file = folder / "model.safetensors"
    experts, size = 2 * 32 * 3 * 512 * 256 * 4, file.stat().st_size
    assert experts > 0.98 * size
    engine = Engine(open_checkpoint(folder), EngineSettings(context_tokens=64, step_tokens=8))
    loaded = resident_of(file)
    assert 0 < loaded < 0.1 * size
    sequence = engine.begin([5], reuse=False)
    engine.run([StepPart(sequence, [5], Rows.LAST)])
    read = resident_of(file) - loaded
    assert experts * 2 / 32 * 0.9 < read < experts * 2 / 32 * 1.6


MX_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
HIDDEN, INNER = 64, 32


def write_mxfp4(folder: Path) -> dict[str, np.ndarray]:
    """A tiny gpt-oss whose experts are MXFP4; the weights that the blocks hold."""
    configuration = MIXTURES_FOR_GGUF["gpt_oss"] | {"hidden_size": HIDDEN}
    configuration |= {"intermediate_size": INNER}
    write_model(folder, configuration)
    arrays = load_file(folder / "model.safetensors")
    random, weights = np.random.default_rng(1), {}
    experts = arrays["model.layers.0.mlp.experts.gate_up_proj"].shape[0]
    for block in range(configuration["num_hidden_layers"]):
        module = f"model.layers.{block}.mlp.experts"
        for name, outputs, inputs in (
            (f"{module}.gate_up_proj", 2 * INNER, HIDDEN),
            (f"{module}.down_proj", HIDDEN, INNER),
        ):
            del arrays[name]
            codes = random.integers(0, 16, (experts, outputs, inputs // 32, 32), np.uint8)
            powers = random.integers(120, 126, (experts, outputs, inputs // 32), np.uint8)
            arrays[f"{name}_blocks"] = codes[..., ::2] | codes[..., 1::2] << 4
            arrays[f"{name}_scales"] = powers
            values = MX_VALUES[codes] * 2.0 ** (powers[..., None].astype(float) - 127)
            weights[name] = values.reshape(experts, outputs, inputs)
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    configuration["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(configuration))
    return weights


def test_experts_in_mxfp4_are_the_weights_that_their_blocks_hold(tmp_path: Path) -> None:
    weights = write_mxfp4(tmp_path)
    read = open_checkpoint(tmp_path).tensors.read_float
    whole = weights["model.layers.1.mlp.experts.gate_up_proj"]
    down = weights["model.layers.1.mlp.experts.down_proj"]
    for expert in range(len(whole)):
        name = f"model.layers.1.mlp.experts.{expert}"
        np.testing.assert_array_equal(read(f"{name}.gate_proj.weight"), whole[expert, 0::2])
        np.testing.assert_array_equal(read(f"{name}.up_proj.weight"), whole[expert, 1::2])
        np.testing.assert_array_equal(read(f"{name}.down_proj.weight"), down[expert])


def test_experts_in_mxfp4_run_in_both_executors_alike(tmp_path: Path) -> None:
    write_mxfp4(tmp_path)
    tokens = make_tokens(VARIANTS["gpt_oss"])[0, :40]
    expected = open_model(str(tmp_path)).logits(tokens[None])[0]
    settings = EngineSettings(
        step_tokens=64, logits_rows=64, cache=CacheKind.F32, activations=ActivationKind.F32
    )
    engine = Engine(open_checkpoint(tmp_path), settings)
    sequence = engine.begin(tokens.tolist(), reuse=False)
    logits = engine.run([StepPart(sequence, tokens.tolist(), Rows.ALL)])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_experts_in_mxfp4_keep_their_codes_in_gguf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "tokenizer_metadata", lambda files, configuration: {})
    write_mxfp4(tmp_path)
    ours, out = open_checkpoint(tmp_path), tmp_path / "model.gguf"
    writer.export_gguf(ours, out, writer.TypeChoice(), "tiny", lambda report: None)
    stack = read_gguf(out).tensors["blk.1.ffn_gate_exps.weight"]
    assert (stack.type.name, stack.shape[1:]) == ("MXFP4", (INNER, HIDDEN))
    theirs = open_checkpoint(out)
    for spec in ours.plan.tensors():
        expected = ours.tensors.read_float(spec.name)
        np.testing.assert_array_equal(theirs.tensors.read_float(spec.name), expected)
