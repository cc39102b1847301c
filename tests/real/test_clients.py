"""Real clients, unmodified: openai, anthropic, ollama, LangChain, LlamaIndex, litellm, lm-eval.

In: novella with a chat template, on loopback. Out: each client's own objects, beside the model's
own answers. A client that is not installed is skipped, and says so.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
from live_server import Live, chat_model, live, served, until

import crumb

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("default"),  # the clients' own, about each other
]

SAID = "Tell me of the sea."
MESSAGES: Any = [{"role": "user", "content": SAID}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return chat_model(tmp_path_factory.mktemp("models") / "novella-chat")


@pytest.fixture(scope="module")
def server(place: Any) -> Iterator[Live]:
    with live(lambda: [served("novella", place, context=512)]) as running:
        until(lambda: running.http.get("/health").status_code == 200)
        yield running


@pytest.fixture(scope="module")
def model(place: Any) -> Iterator[Any]:
    with crumb.load(place, context_tokens=512, threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def expected(model: Any) -> str:
    return str(model.chat(MESSAGES, max_tokens=16, temperature=0.0).text)


def openai_client(server: Live, **more: Any) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", **more)


ASK: dict[str, Any] = {"model": "novella", "messages": MESSAGES, "temperature": 0, "max_tokens": 16}


def test_openai_reads_a_chat_whole_and_streamed(server: Live, expected: str) -> None:
    client = openai_client(server)
    whole = client.chat.completions.create(**ASK)
    assert whole.choices[0].message.content == expected
    assert whole.usage.completion_tokens == 16
    chunks = list(
        client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    )
    texts = [each.choices[0].delta.content or "" for each in chunks if each.choices]
    assert "".join(texts) == expected
    assert chunks[-1].usage.completion_tokens == 16
    assert chunks[-2].choices[0].finish_reason == "length"


def test_openai_reads_a_stream_by_its_own_helper(server: Live, expected: str) -> None:
    stop = expected[-4:]
    with openai_client(server).chat.completions.stream(**ASK, stop=stop) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert final.choices[0].message.content == expected[: expected.index(stop)]
    assert "content.delta" in kinds


def test_openai_works_without_waiting(server: Live, expected: str) -> None:
    openai = pytest.importorskip("openai")

    async def work() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            answers = await asyncio.gather(
                *(client.chat.completions.create(**ASK) for _ in range(4))
            )
            texts = [each.choices[0].message.content for each in answers]
            stream = await client.chat.completions.create(**ASK, stream=True)
            text = ""
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
            return [*texts, text]

    assert set(asyncio.run(work())) == {expected}


def test_openai_reads_logprobs(server: Live, model: Any) -> None:
    answer = openai_client(server).chat.completions.create(**ASK, logprobs=True, top_logprobs=3)
    ours = model.chat(MESSAGES, max_tokens=16, temperature=0.0, logprobs=3).logprobs
    theirs = answer.choices[0].logprobs.content
    assert [each.logprob for each in theirs] == [each.logprob for each in ours]
    assert [len(each.top_logprobs) for each in theirs] == [3] * 16


def test_openai_reads_completions_with_echo(server: Live, model: Any) -> None:
    client = openai_client(server)
    answer = client.completions.create(
        model="novella", prompt=SAID, max_tokens=0, echo=True, logprobs=0
    )
    values = answer.choices[0].logprobs.token_logprobs
    assert values == [each.logprob for each in model.score(SAID).tokens]
    stream = client.completions.create(
        model="novella", prompt=SAID, max_tokens=8, temperature=0, stream=True
    )
    text = "".join(each.choices[0].text for each in stream)
    assert text == model.generate(SAID, max_tokens=8).text


def test_openai_reads_embeddings_which_it_asks_for_in_base64(server: Live, model: Any) -> None:
    answer = openai_client(server).embeddings.create(model="novella", input=[SAID, "Other"])
    vectors = [np.asarray(each.embedding, np.float32) for each in answer.data]
    assert vectors[0].tobytes() == model.embed(SAID).vector.tobytes()
    assert vectors[1].tobytes() == model.embed("Other").vector.tobytes()


def test_openai_lists_models_with_a_slash_and_finds_one(server: Live) -> None:
    client = openai_client(server)
    assert [each.id for each in client.models.list()] == ["novella"]
    assert client.models.retrieve("novella").id == "novella"


def test_openai_raises_its_own_errors_and_does_not_try_again(server: Live) -> None:
    openai = pytest.importorskip("openai")
    client = openai_client(server)
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**(ASK | {"model": "gpt-9"}))
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(
            **(ASK | {"messages": [{"role": "user", "content": "sea " * 2000}]})
        )
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(**(ASK | {"temperature": 9999}))
    assert wrong.value.param == "temperature"


FORM = {
    "type": "object",
    "properties": {"kind": {"enum": ["sea", "land"]}, "warm": {"type": "boolean"}},
    "required": ["kind", "warm"],
    "additionalProperties": False,
}
WEATHER = {"name": "weather", "description": "The weather there.", "parameters": FORM}


def test_openai_reads_an_answer_of_a_form_into_a_model(server: Live) -> None:
    pydantic = pytest.importorskip("pydantic")
    fields: Any = {"kind": (Literal["sea", "land"], ...), "warm": (bool, ...)}
    form = pydantic.create_model("Form", **fields)
    answer = openai_client(server).chat.completions.parse(
        model="novella", messages=MESSAGES, response_format=form, max_tokens=300, temperature=0
    )
    choice = answer.choices[0]
    assert choice.message.parsed is not None
    assert isinstance(choice.message.parsed.warm, bool)


def test_openai_reads_a_required_call_whole_and_streamed(server: Live) -> None:
    client = openai_client(server)
    asked: Any = {
        "model": "novella",
        "messages": MESSAGES,
        "tools": [{"type": "function", "function": WEATHER}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 0,
    }
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert json.loads(call.function.arguments)["kind"] in ("sea", "land")
    arguments = ""
    for chunk in client.chat.completions.create(**asked, stream=True):
        for each in chunk.choices[0].delta.tool_calls or ():
            arguments += each.function.arguments or ""
    assert arguments == call.function.arguments


def test_anthropic_reads_a_required_call_streamed(server: Live) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=server.url, api_key="none")
    tool: Any = {"name": "weather", "input_schema": FORM}
    with client.messages.stream(
        model="claude-local",
        max_tokens=200,
        messages=MESSAGES,
        tools=[tool],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    ) as stream:
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use"
    (block,) = [each for each in final.content if each.type == "tool_use"]
    assert block.input["kind"] in ("sea", "land")


def test_ollama_reads_a_form_and_calls(server: Live) -> None:
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=server.url)
    answer = client.chat("novella", messages=MESSAGES, format=FORM, options={"temperature": 0})
    assert json.loads(answer.message.content)["kind"] in ("sea", "land")


def test_openai_reads_responses_whole_streamed_and_continued(server: Live, expected: str) -> None:
    client = openai_client(server)
    asked: Any = {"model": "novella", "temperature": 0, "max_output_tokens": 16}
    first = client.responses.create(**asked, input=SAID)
    assert first.output_text == expected
    assert first.status == "incomplete"
    text = ""
    kinds = []
    for event in client.responses.create(**asked, input=SAID, stream=True):
        kinds.append(event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
    assert text == expected
    assert kinds[-1] == "response.incomplete"
    second = client.responses.create(**asked, input="And?", previous_response_id=first.id)
    assert second.usage.input_tokens > first.usage.input_tokens
    assert client.responses.retrieve(first.id).output_text == expected
    client.responses.delete(first.id)


def test_anthropic_reads_a_message_whole_and_streamed(server: Live, expected: str) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=server.url, api_key="none")
    asked: Any = {
        "model": "claude-local",
        "max_tokens": 16,
        "messages": MESSAGES,
        "extra_body": {"temperature": 0},
    }
    message = client.messages.create(**asked)
    assert message.content[0].text == expected
    assert message.stop_reason == "max_tokens"
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == expected
    assert final.usage.output_tokens == 16
    counted = client.messages.count_tokens(model="claude-local", messages=MESSAGES)
    total = final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0)
    assert counted.input_tokens == total
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**(asked | {"model": "other"}))
    with pytest.raises(anthropic.APIStatusError) as long:
        client.messages.create(
            **(asked | {"messages": [{"role": "user", "content": "sea " * 2000}]})
        )
    assert long.value.status_code == 413


def test_ollama_reads_chats_texts_vectors_and_models(
    server: Live, expected: str, model: Any
) -> None:
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=server.url)
    options = {"temperature": 0, "num_predict": 16}
    answer = client.chat("novella", messages=MESSAGES, options=options)
    assert answer.message.content == expected
    parts = list(client.chat("novella:latest", messages=MESSAGES, options=options, stream=True))
    assert "".join(each.message.content for each in parts) == expected
    assert parts[-1].done_reason == "length"
    assert parts[-1].eval_count == 16
    text = client.generate("novella", SAID, options=options, raw=True)
    assert text.response == model.generate(SAID, max_tokens=16).text
    vectors = client.embed("novella", [SAID]).embeddings
    assert np.allclose(vectors[0], model.embed(SAID).vector)
    assert [each.model for each in client.list().models] == ["novella"]
    assert client.show("novella").modelinfo
    assert [each.model for each in client.ps().models] == ["novella"]
    with pytest.raises(ollama.ResponseError, match="not found"):
        client.chat("other", messages=MESSAGES)


def test_langchain_reads_chats_and_vectors(server: Live, expected: str, model: Any) -> None:
    langchain = pytest.importorskip("langchain_openai")
    where: Any = {"base_url": f"{server.url}/v1", "api_key": "none", "model": "novella"}
    chat = langchain.ChatOpenAI(**where, temperature=0, max_tokens=16)
    assert chat.invoke(SAID).content == expected
    assert "".join(str(each.content) for each in chat.stream(SAID)) == expected
    plain = langchain.OpenAIEmbeddings(**where, check_embedding_ctx_length=False)
    assert np.allclose(plain.embed_query(SAID), model.embed(SAID).vector)


def test_llama_index_reads_completions_and_chats(server: Live, expected: str, model: Any) -> None:
    like = pytest.importorskip("llama_index.llms.openai_like")
    core = pytest.importorskip("llama_index.core.llms")
    where: Any = {
        "api_base": f"{server.url}/v1",
        "api_key": "none",
        "model": "novella",
        "temperature": 0,
        "max_tokens": 16,
    }
    plain = like.OpenAILike(**where)
    assert plain.complete(SAID).text == model.generate(SAID, max_tokens=16).text
    chat = like.OpenAILike(**where, is_chat_model=True)
    message = core.ChatMessage(role="user", content=SAID)
    assert chat.chat([message]).message.content == expected
    assert [each.delta for each in chat.stream_chat([message])]


def test_litellm_reads_each_protocol(server: Live, expected: str) -> None:
    litellm = pytest.importorskip("litellm")
    asked: Any = {"messages": MESSAGES, "temperature": 0, "max_tokens": 16, "api_key": "none"}
    ways = (
        ("openai/novella", f"{server.url}/v1"),
        ("anthropic/claude-local", server.url),
        ("ollama_chat/novella", server.url),
    )
    for name, base in ways:
        answer = litellm.completion(model=name, api_base=base, **asked)
        assert answer.choices[0].message.content == expected, name
        parts = litellm.completion(model=name, api_base=base, stream=True, **asked)
        text = "".join(each.choices[0].delta.content or "" for each in parts)
        assert text == expected, name


def test_lm_eval_measures_over_http_what_the_model_measures(server: Live, model: Any) -> None:
    api = pytest.importorskip("lm_eval.models.openai_completions")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    theirs = api.LocalCompletionsAPI(
        model="novella",
        base_url=f"{server.url}/v1/completions",
        tokenizer_backend="remote",
        num_concurrent=1,
        max_length=256,
    )
    pairs = [
        ("The old man looked at the", " sea"),
        ("The old man looked at the", " moon and the stars"),
        ("Once upon a time", " there was"),
    ]
    asked = [
        instance(request_type="loglikelihood", doc={}, arguments=pair, idx=index)
        for index, pair in enumerate(pairs)
    ]
    for (logprob, greedy), (context, continuation) in zip(
        theirs.loglikelihood(asked), pairs, strict=True
    ):
        begin = len(model.tokenizer.encode(context))
        score = model.score(context + continuation, top=1)
        tokens = score.tokens[begin:]
        assert math.isclose(logprob, sum(each.logprob for each in tokens), abs_tol=1e-9)
        assert greedy == all(each.top[0].token == each.token for each in tokens)
