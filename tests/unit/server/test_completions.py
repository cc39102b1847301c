"""/v1/completions, /v1/embeddings and the tokenizer's routes, compared with the model itself."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from live_server import NOVELLA, Live

import crumb

COMPLETIONS = "/v1/completions"
TEXT = "The old man looked at the sea."


@pytest.fixture(scope="module")
def model() -> Any:
    with crumb.load(NOVELLA, context_tokens=256, threads=1) as loaded:
        yield loaded


def test_a_completion_is_what_the_model_generates(server: Live, model: Any) -> None:
    answer = server.post(COMPLETIONS, model="novella", prompt=TEXT, max_tokens=9, temperature=0)
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == model.generate(TEXT, max_tokens=9).text
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_list_of_prompts_is_answered_by_index(server: Live, model: Any) -> None:
    prompts = [TEXT, "Once upon a time", "It was night."]
    asked = {"model": "novella", "prompt": prompts, "max_tokens": 5, "temperature": 0}
    alone = [model.generate(each, max_tokens=5).text for each in prompts]
    answer = server.post(COMPLETIONS, **asked)
    assert [each["text"] for each in answer["choices"]] == alone
    texts = ["", "", ""]
    for event in server.events(COMPLETIONS, **asked)[:-1]:
        choice = event["choices"][0]
        texts[choice["index"]] += choice["text"]
    assert texts == alone


def test_a_long_list_of_prompts_does_not_fill_the_queue(server: Live) -> None:
    answer = server.post(COMPLETIONS, model="novella", prompt=[TEXT] * 150, max_tokens=1)
    assert [each["index"] for each in answer["choices"]] == list(range(150))


@pytest.mark.parametrize("as_tokens", [False, True])
def test_echoed_log_probabilities_are_those_of_score(
    server: Live, model: Any, as_tokens: bool
) -> None:
    tokens = model.tokens_of(TEXT)
    prompt = [list(tokens)] if as_tokens else TEXT
    answer = server.post(
        COMPLETIONS,
        model="novella",
        prompt=prompt,
        max_tokens=1,
        logprobs=1,
        echo=True,
        temperature=0,
        seed=1234,
    )
    choice = answer["choices"][0]
    logprobs = choice["logprobs"]
    score = model.score(TEXT, top=1)
    assert len(logprobs["token_logprobs"]) == len(tokens) + 1
    assert logprobs["token_logprobs"][:-1] == [each.logprob for each in score.tokens]
    assert logprobs["token_logprobs"][0] is None
    assert choice["text"].startswith(TEXT)
    for top in logprobs["top_logprobs"][1:]:
        assert isinstance(top, dict)
    for token, top in zip(score.tokens[1:], logprobs["top_logprobs"][1:], strict=False):
        is_greedy = token.top[0].token == token.token
        assert (max(top.values()) == token.logprob) == is_greedy, "both come from one array"


def test_a_prompt_can_be_scored_without_a_token_more(server: Live, model: Any) -> None:
    answer = server.post(
        COMPLETIONS, model="novella", prompt=TEXT, max_tokens=0, logprobs=0, echo=True
    )
    assert answer["choices"][0]["text"] == TEXT
    values = answer["choices"][0]["logprobs"]["token_logprobs"]
    assert values == [each.logprob for each in model.score(TEXT).tokens]


def test_vectors_are_the_models_own_in_either_encoding(server: Live, model: Any) -> None:
    vector = model.embed(TEXT).vector
    for prompt in (TEXT, list(model.tokens_of(TEXT)), [list(model.tokens_of(TEXT))]):
        answer = server.post("/v1/embeddings", model="novella", input=prompt)
        assert np.asarray(answer["data"][0]["embedding"], np.float32).tobytes() == vector.tobytes()
    coded = server.post("/v1/embeddings", model="novella", input=TEXT, encoding_format="base64")
    raw = base64.b64decode(coded["data"][0]["embedding"])
    assert np.frombuffer(raw, "<f4").tobytes() == vector.tobytes()
    short = server.post("/v1/embeddings", model="novella", input=TEXT, dimensions=4)
    first = np.asarray(short["data"][0]["embedding"])
    assert np.allclose(first, vector[:4] / np.linalg.norm(vector[:4]), atol=1e-6)
    status, _ = server.refused("/v1/embeddings", model="novella", input=TEXT, dimensions=100000)
    assert status == 400


def test_a_text_goes_to_tokens_and_back(server: Live, model: Any) -> None:
    answer = server.post("/tokenize", prompt=TEXT)
    assert answer["tokens"] == list(model.tokens_of(TEXT))
    back = server.post("/detokenize", tokens=answer["tokens"])
    assert back["prompt"] == back["content"] == model.tokenizer.decode(answer["tokens"])
    other = server.post("/tokenize", content=TEXT)
    assert other["tokens"] == model.tokenizer.encode(TEXT, special=False)
    info = server.http.get("/tokenizer_info").json()
    assert info["eos_token"]
    assert "add_generation_prompt" in info["chat_template"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", [1.5]),
        ("prompt", {"text": "x"}),
        ("prompt", [[10**9]]),
        ("logprobs", 21),
        ("logprobs", -1),
        ("max_tokens", "many"),
        ("suffix", "end"),
        ("best_of", 3),
        ("n", 0),
        ("stop", ["a"] * 17),
    ],
)
def test_a_setting_that_cannot_be_is_refused(server: Live, field: str, value: Any) -> None:
    asked = {"model": "novella", "prompt": TEXT, field: value}
    status, answer = server.refused(COMPLETIONS, **asked)
    assert status == 400
    assert answer["error"]["message"]
