"""GGUF's blocks against the gguf package: sizes, numbers and weights of every type it knows.

In: random blocks. Out: the same f32 (a zero's sign aside). The package has no decoder for Q2_0.
"""

import numpy as np
import pytest
from gguf_matrices import QUANTIZED, random_blocks

from crumb.formats.layouts.gguf_blocks import decode_floats
from crumb.formats.layouts.gguf_types import GGUF_TYPES, QUANTIZATION_VERSION, UNSUPPORTED

pytestmark = pytest.mark.oracle

gguf = pytest.importorskip("gguf")
KNOWN = [name for name in GGUF_TYPES if hasattr(gguf.GGMLQuantizationType, name)]


def their_type(name):
    return gguf.GGMLQuantizationType[name]


def test_the_package_knows_all_types_but_the_newest():
    assert set(GGUF_TYPES) - set(KNOWN) <= {"Q2_0"}


@pytest.mark.parametrize("name", KNOWN)
def test_sizes_and_numbers_are_theirs(name):
    row = GGUF_TYPES[name]
    assert row.id == their_type(name)
    assert (row.block_weights, row.block_bytes) == gguf.GGML_QUANT_SIZES[their_type(name)]
    names = {kind.value: kind.name for kind in gguf.LlamaFileType}
    assert name in names[row.file_type]


def test_unsupported_types_have_their_names():
    names = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    assert {id: names[id] for id in UNSUPPORTED} == UNSUPPORTED
    assert gguf.GGML_QUANT_VERSION == QUANTIZATION_VERSION


@pytest.mark.parametrize("name", [name for name in KNOWN if name in QUANTIZED])
def test_random_blocks_decode_to_their_weights(name):
    raw = random_blocks(GGUF_TYPES[name], 64, 1024, seed=1)
    theirs = gguf.quants.dequantize(raw, their_type(name))
    np.testing.assert_array_equal(decode_floats(name, raw, 1024), theirs)


def test_every_power_of_two_decodes_as_theirs():
    raw = random_blocks(GGUF_TYPES["MXFP4"], 256, 32, seed=2)
    raw[:, 0] = np.arange(256)
    with np.errstate(over="ignore"):
        theirs = gguf.quants.dequantize(raw, their_type("MXFP4"))
    np.testing.assert_array_equal(decode_floats("MXFP4", raw, 32), theirs)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_floats_decode_as_theirs(name):
    rng = np.random.default_rng(3)
    raw = gguf.quants.quantize(rng.standard_normal((3, 40)).astype(np.float32), their_type(name))
    raw = np.ascontiguousarray(raw).view(np.uint8)
    theirs = gguf.quants.dequantize(raw, their_type(name))
    np.testing.assert_array_equal(decode_floats(name, raw, 40), theirs)
