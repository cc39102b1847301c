"""Our compressed-tensors files in the library of that name and in transformers.

In: random codes, and tiny models quantized by rounding. Out: the same words as the library packs,
the same weights as it unpacks, and logits within rounding of f32.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_files import (
    NV_WEIGHTS,
    compressed_arrays,
    float_scheme,
    random_floats,
    random_grid,
    random_scaled_floats,
)
from tiny_checkpoint import make_tensors, write_checkpoint
from tiny_models import tolerance

from crumb.checkpoints.compressed_tensors.reader import METHOD
from crumb.checkpoints.compressed_tensors.writer import write_compressed_tensors
from crumb.checkpoints.gptq.writer import pack_words
from crumb.checkpoints.grouped_codes import unpack_words
from crumb.checkpoints.huggingface.reader import open_directory
from crumb.pipeline import QuantizeRequest, quantize
from crumb.run.model import Model
from crumb.solve.problem import Method, SolveSettings

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor  # noqa: E402
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor  # noqa: E402
from compressed_tensors.compressors.pack_quantized.base import (  # noqa: E402
    PackedQuantizationCompressor,
)
from compressed_tensors.compressors.pack_quantized.helpers import (  # noqa: E402
    pack_to_int32,
    unpack_from_int32,
)
from compressed_tensors.quantization import (  # noqa: E402
    QuantizationArgs,
    QuantizationScheme,
)

pytestmark = pytest.mark.oracle

ROUNDING = SolveSettings(method=Method.ROUND)


@pytest.mark.parametrize("columns", [32, 33, 60, 4096])
@pytest.mark.parametrize("bits", range(1, 9))
def test_both_pack_the_same_words(bits: int, columns: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, (5, columns)).astype(np.uint8)
    signed = torch.from_numpy((codes.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8))
    theirs = pack_to_int32(signed, bits)
    np.testing.assert_array_equal(pack_words(codes, bits), theirs.numpy())
    np.testing.assert_array_equal(unpack_words(theirs.numpy(), bits, columns), codes)
    back = unpack_from_int32(torch.from_numpy(pack_words(codes, bits)), bits, signed.shape)
    assert torch.equal(back, signed)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group_size", [32, 128, -1])
@pytest.mark.parametrize("bits", range(1, 9))
def test_the_library_decodes_the_plain_files_of_these_tests_alike(
    bits: int, group_size: int, symmetric: bool
) -> None:
    """So what the unit tests compare with is what the library means."""
    grid = random_grid(bits, (64, 256), group_size, symmetric=symmetric)
    weights = QuantizationArgs(
        num_bits=bits,
        symmetric=grid.symmetric,
        strategy="channel" if group_size == -1 else "group",
        group_size=None if group_size == -1 else group_size,
    )
    arrays = compressed_arrays(grid)
    state: dict[str, Any] = {
        name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()
    }
    state["weight_scale"] = state["weight_scale"].float()  # its products are exact in f32
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    found = PackedQuantizationCompressor.decompress(state, scheme)["weight"]
    np.testing.assert_array_equal(found.float().numpy(), grid.weights())


def test_the_library_reads_and_writes_our_bytes_of_4_bit_floats() -> None:
    """All scales that fp16 holds; it decodes to bfloat16, which has every such weight.

    What it writes has one zero, of two that there are.
    """
    grid = random_floats((64, 1280))
    scheme = QuantizationScheme(**float_scheme(["Linear"]))
    theirs = {name: torch.from_numpy(array) for name, array in grid.arrays().items()}
    found = MXFP4PackedCompressor.decompress(theirs, scheme)
    np.testing.assert_array_equal(found["weight"].float().numpy(), grid.weights())
    grid = replace(grid, codes=np.where(grid.codes == 8, 0, grid.codes))
    state = {
        "weight": torch.from_numpy(grid.weights()),
        "weight_scale": torch.from_numpy(np.exp2(grid.exponents.astype(np.float32) - 127)),
    }
    written = MXFP4PackedCompressor.compress(state, scheme)
    for name, array in grid.arrays().items():
        assert written[name].dtype == torch.uint8
        np.testing.assert_array_equal(written[name].numpy(), array, name)


def test_the_library_decodes_nvfp4_alike() -> None:
    """It rounds to bfloat16 at the end."""
    grid = random_scaled_floats((64, 1280))
    scheme = QuantizationScheme(**float_scheme(["Linear"], **NV_WEIGHTS))
    arrays = {name: np.ascontiguousarray(array) for name, array in grid.arrays().items()}
    scales = torch.from_numpy(arrays["weight_scale"].view(np.uint8)).view(torch.float8_e4m3fn)
    state = {name: torch.from_numpy(arrays[name]) for name in arrays if name != "weight_scale"}
    weight = NVFP4PackedCompressor.decompress(state | {"weight_scale": scales}, scheme)["weight"]
    expected = torch.from_numpy(grid.weights()).to(weight.dtype)
    assert torch.equal(weight, expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_transformers_gives_our_logits(bits: int, tmp_path: Path) -> None:
    """Symmetric files only: the library's release 0.20 expects the zero points of others unpacked
    when transformers loads them, against its own compressor.
    """
    source = write_checkpoint(tmp_path / "model", make_tensors(tied=False))
    quantize(QuantizeRequest(str(source), tmp_path / "q", bits=bits, group_size=32, solve=ROUNDING))
    write_compressed_tensors(open_directory(tmp_path / "q"), tmp_path / "out")
    ours = Model(open_directory(tmp_path / "out"))
    tokens = np.arange(48).reshape(2, 24) * 7 % 256
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, of their own deprecations
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", dtype=torch.float32
        )
        with torch.no_grad():
            theirs = model(torch.from_numpy(tokens)).logits.numpy()
    assert model.config.quantization_config.quantization_config.quant_method == METHOD
    allowed = tolerance(ours.plan, theirs)
    np.testing.assert_allclose(ours.logits(tokens), theirs, rtol=0, atol=allowed)


def test_transformers_loads_our_4_bit_floats_as_our_weights(tmp_path: Path) -> None:
    """bfloat16 has them all."""
    source = write_checkpoint(tmp_path / "model", make_tensors(tied=False))
    request = QuantizeRequest(str(source), tmp_path / "q", bits=4, group_size=32, solve=ROUNDING)
    quantize(replace(request, codes="mxfp4"))
    write_compressed_tensors(open_directory(tmp_path / "q"), tmp_path / "out")
    ours = open_directory(tmp_path / "q").tensors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, of their own deprecations
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", dtype=torch.bfloat16
        )
        model.hf_quantizer.compressor.decompress_model(model)
    linears = {name: module for name, module in model.named_modules() if name.endswith("_proj")}
    assert len(linears) == 7 * model.config.num_hidden_layers
    for name, module in linears.items():
        expected = ours.read_float(f"{name}.weight")
        np.testing.assert_array_equal(module.weight.float().numpy(), expected, name)
