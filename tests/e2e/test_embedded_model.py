"""The embedded model through every arrow: quantize, open, evaluate, generate.

In: novella-7m and its 3-bit version. Out: exact tokens where no processor's rounding can change
them, else two ways to the same numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import succeed
from tiny_checkpoint import write_safetensors

from crumb.embedded import MODELS
from crumb.formats.packed_tensor import PackedTensor
from crumb.kernels.decode import decode_packed_reference
from crumb.run.load import load
from crumb.run.model import Model, open_model
from crumb.run.session import Session

NOVELLA = MODELS["novella-7m"]

PROMPT = "The old man looked at the sea and"
CONTINUED = ' the\nfather.\n\n"I\'m sure I am not going to see you, sir," said the old'
GREEDY = [266, 200, 71, 674, 15, 200, 200, 3, 42, 1378, 1315, 306]
GREEDY += [625, 369, 1120, 286, 697, 343, 13, 1485, 474, 450, 266, 743]

SAFE_MARGIN = 0.05
"""The two best logits lie further apart than this; f32 rounding moves them by about 1e-4."""


def spoken(path: Path, count_tokens: int, **settings: Any) -> list[int]:
    """What the native engine says with exact products."""
    with load(path, context_tokens=64, activations="f32", cache="f32") as model:
        return list(model.generate(PROMPT, max_tokens=count_tokens, **settings).tokens)


def margins(model: Model, prompt: list[int], tokens: list[int]) -> list[float]:
    """Distance between the best and the second logit before each token."""
    session = Session(model)
    logits = session.feed(prompt)[-1]
    found = []
    for token in tokens:
        second, best = np.sort(logits)[-2:]
        found.append(float(best - second))
        logits = session.feed([token])[-1]
    return found


def test_greedy_text_of_the_float_model_is_known_token_by_token() -> None:
    model = open_model(str(NOVELLA))
    prompt = model.tokenizer.encode(PROMPT)
    tokens = spoken(NOVELLA, len(GREEDY))
    assert min(margins(model, prompt, tokens)) > SAFE_MARGIN
    assert tokens == GREEDY
    assert model.tokenizer.decode(tokens) == CONTINUED


def test_a_quantized_model_is_the_float_model_of_its_decoded_weights(
    quantized_novella: Path, tmp_path: Path
) -> None:
    """Bit for bit: written as f32 safetensors by a decoder in plain NumPy, it gives the same."""
    model = open_model(str(quantized_novella))
    decoded = {}
    for spec in model.plan.tensors():
        stored = model.checkpoint.tensors.entry(spec.name).read()
        is_packed = isinstance(stored, PackedTensor)
        assert is_packed == spec.matrix
        weights = decode_packed_reference(stored) if isinstance(stored, PackedTensor) else stored
        decoded[spec.name] = weights.astype(np.float32)
    write_safetensors(tmp_path / "model.safetensors", decoded)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((NOVELLA / name).read_bytes())
    exported = open_model(str(tmp_path))
    prompt = model.tokenizer.encode(PROMPT)
    tokens = np.asarray([prompt])
    np.testing.assert_array_equal(model.logits(tokens), exported.logits(tokens))
    assert spoken(quantized_novella, 12) == spoken(tmp_path, 12)


def test_the_quantized_model_is_small_and_stays_close(
    quantized_novella: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong scale, order or offset anywhere costs nats; 3 bits done right cost hundredths."""
    line = ["eval", quantized_novella, "--reference", NOVELLA, "--text", "excerpt-evaluation"]
    figures = json.loads(succeed(capsys, *line, "--window", 256, "--limit", 4, "--json"))
    moved = figures["divergence"]
    assert 0.001 < moved["kl"]["value"] < 0.05
    assert moved["top1_agreement"]["value"] > 0.8
    assert 0.9 < moved["perplexity_ratio"]["value"] < 1.1
    assert figures["scored_tokens"] == 4 * 255
    in_embedding, in_norms = 4096 * 256, 17 * 256
    in_blocks = 7_344_384 - in_embedding - in_norms
    group_bits = 16 / 128
    bits = in_blocks * (3 + group_bits) + in_embedding * (5 + group_bits) + in_norms * 16
    header_bytes = figures["file_bytes"] - bits / 8
    # 57 matrices of two arrays and a line of metadata, 17 norms: about 100 bytes for each of these
    assert 0 < header_bytes < 110 * (57 * 3 + 17)


def test_what_belongs_to_the_tokenizer_travels_with_the_model(quantized_novella: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (quantized_novella / name).read_bytes() == (NOVELLA / name).read_bytes()
    written = json.loads((quantized_novella / "config.json").read_text())
    container = written.pop("quantization_config")
    assert container == {"quant_method": "crumb", "layout": "tile", "layout_version": 1}
    assert written == json.loads((NOVELLA / "config.json").read_text())


def test_a_quantized_model_speaks(quantized_novella: Path) -> None:
    sampling = {"temperature": 0.7, "top_p": 0.9, "seed": 7}
    tokens = spoken(quantized_novella, 16, **sampling)
    assert tokens == spoken(quantized_novella, 16, **sampling)
    assert len(open_model(str(quantized_novella)).tokenizer.decode(tokens).split()) > 4
