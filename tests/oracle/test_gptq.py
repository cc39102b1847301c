"""Our GPTQ files in AutoGPTQ's layers under transformers, and its files here.

In: tiny models quantized by rounding and written as GPTQ version 1. Out: weights equal to the bit,
logits within rounding of f32. The layers are AutoGPTQ's own file, loaded without its package.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_files import MODULE, gptq_arrays, random_grid, write_model
from tiny_checkpoint import make_tensors, write_checkpoint
from tiny_models import tolerance

from crumb.checkpoints.gptq.writer import write_gptq
from crumb.checkpoints.huggingface.reader import open_directory
from crumb.checkpoints.safetensors import read_header
from crumb.pipeline import QuantizeRequest, quantize
from crumb.run.model import Model
from crumb.solve.problem import Method, SolveSettings

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def layer_class() -> Any:
    """AutoGPTQ's QuantLinear in plain torch."""
    package = importlib.util.find_spec("auto_gptq")
    if package is None or package.origin is None:
        pytest.skip("needs auto-gptq: pip install --no-deps auto-gptq")
    path = Path(package.origin).parent / "nn_modules" / "qlinear" / "qlinear_cuda.py"
    spec = importlib.util.spec_from_file_location("auto_gptq_qlinear", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.QuantLinear


def loaded(
    layer_class: Any, arrays: dict[str, Any], bits: int, group_size: int, bias: bool = False
) -> Any:
    """A layer of theirs with these arrays; in f32, so that its products are exact."""
    rows, columns = arrays["scales"].shape[1], arrays["g_idx"].shape[0]
    layer = layer_class(bits, group_size, columns, rows, bias, weight_dtype=torch.float32)
    state = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    layer.load_state_dict(state)
    return layer


def weights_of(layer: Any) -> Any:
    """What a layer multiplies with: its output for each unit vector."""
    with torch.no_grad():
        return layer(torch.eye(layer.infeatures)).numpy().T


@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group_size", [16, 32, 128, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_both_read_the_same_weights(
    bits: int, group_size: int, symmetric: bool, shuffled: bool, layer_class: Any, tmp_path: Path
) -> None:
    grid = random_grid(bits, (64, 384), group_size, symmetric=symmetric, shuffled=shuffled)
    arrays = gptq_arrays(grid)
    config = {"quant_method": "gptq", "bits": bits, "group_size": group_size}
    path = write_model(tmp_path, {MODULE: arrays}, config, feed_forward=384)
    found = open_directory(path).tensors.read_float(f"{MODULE}.weight")
    theirs = weights_of(loaded(layer_class, arrays, bits, group_size))
    np.testing.assert_array_equal(found, theirs)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_our_files_give_our_logits_in_their_layers(
    bits: int, layer_class: Any, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "model", make_tensors(tied=False))
    settings = SolveSettings(method=Method.ROUND)
    quantize(QuantizeRequest(str(source), tmp_path / "q", bits=bits, group_size=32, solve=settings))
    write_gptq(open_directory(tmp_path / "q"), tmp_path / "out")
    ours = Model(open_directory(tmp_path / "out"))
    tokens = np.arange(48).reshape(2, 24) * 7 % 256

    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    del config.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    stored = {name: array.read() for name, array in header(tmp_path / "out").items()}
    for name, module in list(model.named_modules()):
        if f"{name}.qweight" in stored:
            suffixes = ("qweight", "qzeros", "scales", "g_idx")
            arrays = {suffix: stored.pop(f"{name}.{suffix}") for suffix in suffixes}
            assert module.bias is None
            model.set_submodule(name, loaded(layer_class, arrays, bits, 32))
    state = {name: torch.from_numpy(array).float() for name, array in stored.items()}
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert all("_proj." in name for name in missing)
    with torch.no_grad():
        theirs = model.eval()(torch.from_numpy(tokens)).logits.numpy()
    allowed = tolerance(ours.plan, theirs)
    np.testing.assert_allclose(ours.logits(tokens), theirs, rtol=0, atol=allowed)


def header(path: Path) -> dict[str, Any]:
    """The stored arrays of a directory with one file."""
    return dict(read_header(path / "model.safetensors")[0])
