"""RWKV-6 and 7 against their author's package: logits, and the World tokenizer's vocabulary.

In: tiny random models under the package's names, which is what PyTorch runs in f32; the vocabulary
that the package brings. Out: the logits of our executor and of the plain formulas of
tests/architectures/rwkv_reference.py. Needs PyTorch and the package `rwkv`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recurrent_configurations import RECURRENT
from rwkv_reference import reference_logits
from tiny_models import make_tokens, make_weights, stacked, write_model

from crumb.architectures.registry import plan_of
from crumb.files.model_files import WORLD_FILE, DirectoryFiles
from crumb.run.model import open_model
from crumb.tokenizer.tokenizer import load_tokenizer

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.oracle

EPSILONS = {"norm_eps": 1e-5, "layer_norm_epsilon": 1e-5, "head_norm_eps": 64e-5}
"""Those that the package has in its code."""

NAMES_OF_6 = {
    "rwkv.embeddings.": "emb.",
    "rwkv.": "",
    ".pre_ln.": ".ln0.",
    ".attention.": ".att.",
    ".feed_forward.": ".ffn.",
}
NAMES_OF_7 = {
    "model.embeddings.": "emb.",
    "model.norm.": "ln_out.",
    "lm_head.": "head.",
    "model.layers.": "blocks.",
    ".pre_norm.": ".ln0.",
    ".attn_norm.": ".ln1.",
    ".ffn_norm.": ".ln2.",
    ".g_norm.": ".ln_x.",
    ".attn.": ".att.",
    ".r_proj.": ".receptance.",
    ".k_proj.": ".key.",
    ".v_proj.": ".value.",
    ".o_proj.": ".output.",
    "_lora.lora.0.weight": "1",
    "_lora.lora.2.weight": "2",
    "_lora.lora.2.bias": "0",
}


def package(monkeypatch: pytest.MonkeyPatch, name: str, seven: bool = True) -> Any:
    """A module of the package, as it is set up for a version without compiling anything."""
    settings = {"RWKV_V7_ON": str(int(seven)), "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    pytest.importorskip("rwkv")
    monkeypatch.delitem(sys.modules, f"rwkv.{name}", raising=False)
    return importlib.import_module(f"rwkv.{name}")


def by_their_names(
    configuration: dict[str, Any], weights: dict[str, Any], names: dict[str, str]
) -> dict[str, Any]:
    """Weights as the package has them: low ranks lie by inputs."""
    theirs, weights = {}, stacked(configuration, weights)
    for ours, array in weights.items():
        name = ours
        for mine, their in names.items():
            name = name.replace(mine, their)
        turns = name[-1] in "12" and array.ndim == 2
        theirs[name] = torch.from_numpy(array.T.copy() if turns else array)
    return theirs


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("version", "names"), [("rwkv6", NAMES_OF_6), ("rwkv7", NAMES_OF_7)])
def test_logits_are_those_of_the_package(
    version: str, names: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = RECURRENT[version] | EPSILONS
    weights = make_weights(plan_of(configuration))
    torch.save(by_their_names(configuration, weights, names), tmp_path / "author.pth")
    kind = package(monkeypatch, "model", version == "rwkv7").RWKV
    model = kind(str(tmp_path / "author"), "cpu fp32")
    (tokens, _) = make_tokens(configuration)
    with torch.no_grad():
        theirs = model.forward(tokens.tolist(), None, full_output=True)[0].numpy()
    ours = open_model(str(write_model(tmp_path, configuration))).logits(tokens[None])[0]
    plain = reference_logits(configuration, weights, tokens[None])[0]
    allowed = 2e-5 * float(np.abs(theirs).max())
    np.testing.assert_allclose(plain, theirs, rtol=0, atol=allowed)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=allowed)


TEXTS = [
    "The quick brown fox\n\nUser: 12 + 34 = 46.\r\n\tдом 世界 👩‍👩‍👧 ﷺ\x00\x7f",
    "日本語のテキスト。" * 3,
    "  def f(x):\n        return x ** 2  # ünïcödé\n\n\n",
    "",
]


def test_tokens_of_the_published_vocabulary_are_those_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = package(monkeypatch, "rwkv_tokenizer")
    source = Path(os.fspath(module.__file__)).parent / WORLD_FILE
    (tmp_path / WORLD_FILE).write_bytes(source.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 65536, "eos_token_id": 0}))
    ours = load_tokenizer(DirectoryFiles(tmp_path))
    theirs = module.TRIE_TOKENIZER(str(source))
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == text
