"""A quantized model written for other engines runs here as the model it was made of.

In: tiny models quantized by rounding. Out: GPTQ and compressed-tensors directories whose logits,
from both executors, are those of the crumb directory with the embedding that was rounded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from quantized_files import MODULE, gptq_arrays, random_grid, write_model
from tiny_checkpoint import EMBEDDING, HEAD, make_tensors, write_checkpoint
from tiny_models import tolerance

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.compressed_tensors.writer import write_compressed_tensors
from crumb.checkpoints.gptq.writer import write_gptq
from crumb.checkpoints.opening import open_checkpoint
from crumb.checkpoints.tensor_map import StoredCodes, StoredFloats, TensorMap
from crumb.files.model_files import TOKENIZER_FILES
from crumb.pipeline import QuantizeRequest, quantize
from crumb.run.language_model import LanguageModel
from crumb.run.load import engine_settings, load
from crumb.run.model import Model
from crumb.solve.problem import Method, SolveSettings

TOKENS = np.arange(24).reshape(1, 24) * 7 % 256

WRITERS: dict[str, Callable[[Checkpoint, Path], None]] = {
    "gptq": write_gptq,
    "gptq_v2": partial(write_gptq, version="gptq_v2"),
    "compressed-tensors": write_compressed_tensors,
}


def rounded(path: Path, bits: int, zero: str, tied: bool) -> Path:
    """A crumb directory."""
    model = write_checkpoint(path / "model", make_tensors(tied=tied))
    settings = SolveSettings(method=Method.ROUND)
    out = path / "quantized"
    quantize(QuantizeRequest(str(model), out, bits=bits, group_size=32, zero=zero, solve=settings))
    return out


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "own head"])
@pytest.mark.parametrize(
    ("bits", "zero"), [(2, "fixed"), (3, "fixed"), (4, "variable"), (8, "variable")]
)
@pytest.mark.parametrize("target", WRITERS)
def test_a_written_model_gives_the_same_logits(
    target: str, bits: int, zero: str, tied: bool, tmp_path: Path
) -> None:
    if target == "gptq" and zero == "variable":
        target = "gptq_v2"  # plain quantization may choose a zero point of 0
    source = open_checkpoint(rounded(tmp_path, bits, zero, tied))
    out = tmp_path / "out"
    WRITERS[target](source, out)
    written = open_checkpoint(out)
    linears = [name for name in source.tensors.entries if name.endswith("_proj.weight")]
    assert all(isinstance(written.tensors.entry(name), StoredCodes) for name in linears)
    floats = {
        name: written.tensors.entry(name)
        for name in (EMBEDDING, HEAD)
        if name in written.tensors.entries
    }
    entries = dict(source.tensors.entries) | floats
    expected = replace(source, tensors=TensorMap(source.path, entries))
    np.testing.assert_array_equal(Model(written).logits(TOKENS), Model(expected).logits(TOKENS))
    tokens = [int(token) for token in TOKENS[0]]
    with load(out) as model, LanguageModel(expected, engine_settings(source.plan)) as other:
        found = model.logits(tokens)
        np.testing.assert_array_equal(found, other.logits(tokens))
        assert np.abs(found).max() > 0
        assert model.generate("abc", max_tokens=4).tokens


@pytest.mark.parametrize(("group_size", "shuffled"), [(16, False), (16, True), (32, True)], ids=str)
def test_layers_that_run_otherwise_than_in_tiles_give_the_same_logits(
    group_size: int, shuffled: bool, tmp_path: Path
) -> None:
    """Odd groups run as floats, other orders of inputs in their own way: both exactly."""
    grid = random_grid(3, (64, 96), group_size, symmetric=False, shuffled=shuffled)
    config = {"quant_method": "gptq", "bits": 3, "group_size": group_size, "desc_act": shuffled}
    path = write_model(tmp_path / "model", {MODULE: gptq_arrays(grid)}, config)
    kind = StoredFloats if group_size == 16 else StoredCodes
    assert isinstance(open_checkpoint(path).tensors.entry(f"{MODULE}.weight"), kind)
    expected = Model(open_checkpoint(path)).logits(TOKENS)[0]
    with load(path, activations="f32", cache="f32") as model:
        found = model.logits([int(token) for token in TOKENS[0]])
        allowed = tolerance(model.checkpoint.plan, expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed)


def test_the_configuration_and_the_tokenizer_come_along(tmp_path: Path) -> None:
    source = rounded(tmp_path, 4, "fixed", True)
    write_gptq(open_checkpoint(source), tmp_path / "out")
    for name in TOKENIZER_FILES:
        assert (tmp_path / "out" / name).exists() == (source / name).exists()
    before = json.loads((source / "config.json").read_text())
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    assert after.pop("torch_dtype") == "float16"
    assert after.pop("quantization_config")["bits"] == 4
    before.pop("quantization_config")
    assert after == before
