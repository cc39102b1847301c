"""Perplexity by our executor and by transformers, on the same windows of the embedded excerpt.

In: novella-7m, and its quantized version written as f32 safetensors. Out: figures that agree to
1e-5, printed side by side.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import write_safetensors

from crumb.embedded import MODELS
from crumb.evaluation.comparison import evaluate_models
from crumb.pipeline import Calibration, QuantizeRequest, quantize
from crumb.run.model import Model, open_model
from crumb.texts.hub_texts import Use
from crumb.texts.sources import read_text
from crumb.texts.windows import Windows, cut_windows

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.oracle

NOVELLA = MODELS["novella-7m"]
AGREEMENT = 1e-5
"""Roundings of f32 logits average out over 10,220 tokens; a wrong mask or shift costs percents."""


@pytest.fixture(scope="module")
def windows() -> Windows:
    """20 windows of 512 tokens, all but the first of each scored."""
    tokenizer = open_model(str(NOVELLA)).tokenizer
    text = read_text("excerpt-evaluation", Use.EVALUATION)
    return cut_windows(text, tokenizer.encode, protocol="gptq", length=512, limit=20)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """novella-7m at 3 bits."""
    out = tmp_path_factory.mktemp("quantized") / "int3"
    calibration = Calibration("excerpt-calibration", sequences=16, length_tokens=512)
    quantize(QuantizeRequest(str(NOVELLA), out, bits=3, calibration=calibration))
    return out


def write_decoded(model: Model, out: Path) -> Path:
    """A quantized model as a plain f32 checkpoint."""
    decoded = {
        spec.name: model.checkpoint.tensors.read_float(spec.name) for spec in model.plan.tensors()
    }
    shutil.copytree(NOVELLA, out)
    write_safetensors(out / "model.safetensors", decoded)
    return out


def perplexity_by_transformers(directory: Path, windows: Windows) -> float:
    """exp of the mean loss over the scored tokens, each window by itself, in f32."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True
    )
    losses = []
    with torch.no_grad():
        for window in windows.tokens:
            tokens = torch.from_numpy(window)[None]
            predicting = model(tokens).logits[0, windows.first_scored - 1 : -1].double()
            targets = tokens[0, windows.first_scored :]
            losses.append(torch.nn.functional.cross_entropy(predicting, targets, reduction="none"))
    return math.exp(torch.cat(losses).mean().item())


def check(name: str, directory: Path, exported: Path, windows: Windows) -> None:
    (ours,) = evaluate_models([open_model(str(directory))], None, windows)
    theirs = perplexity_by_transformers(exported, windows)
    print(f"{name}: perplexity {ours.perplexity.value:.6f} here, {theirs:.6f} by transformers")
    assert ours.perplexity.value == pytest.approx(theirs, rel=AGREEMENT)


def test_perplexity_of_the_float_model_agrees(windows: Windows) -> None:
    assert windows.tokens.shape == (20, 512)
    check("float", NOVELLA, NOVELLA, windows)


def test_perplexity_of_the_quantized_model_agrees(
    quantized: Path, windows: Windows, tmp_path: Path
) -> None:
    exported = write_decoded(open_model(str(quantized)), tmp_path / "decoded")
    check("int3-g128-fixed", quantized, exported, windows)


def test_tokens_of_the_excerpt_agree() -> None:
    ours = open_model(str(NOVELLA)).tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(NOVELLA, local_files_only=True)
    text = read_text("excerpt-evaluation", Use.EVALUATION).text[:20_000]
    np.testing.assert_array_equal(ours.encode(text), theirs(text)["input_ids"])
