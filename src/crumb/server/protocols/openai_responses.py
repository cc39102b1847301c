"""/v1/responses: OpenAI's newer way to ask, which Codex speaks.

In: input as a text or items, instructions, an earlier response to go on from. Out: a response, or
its events. Responses are remembered unless `store` is false: so many, for so long.
Refuses work in the background and conversations that live on a server; an unknown id is 404.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from crumb.errors import UsageError
from crumb.requests.chat_request import ChatRequest, ToolChoice
from crumb.requests.generate_request import GenerateOptions
from crumb.requests.reply_format import read_reply_format
from crumb.server.bodies import Fields
from crumb.server.chat import begin_chat, chat_prompt
from crumb.server.protocol import Call, HttpAnswer, HttpStream, Route
from crumb.server.protocols.openai import HARMLESS
from crumb.server.protocols.openai_chat import tool_choice
from crumb.server.protocols.response_store import ResponseStore, store_of
from crumb.server.protocols.response_writer import ResponseWriter
from crumb.server.protocols.responses_items import ItemReader, input_items
from crumb.server.replies import read_whole
from crumb.server.served_model import ServedModel

LOGPROBS = "message.output_text.logprobs"


class ResponseBody(msgspec.Struct, kw_only=True):
    """What a response is asked with."""

    input: str | list[Any] | None = None
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    stream: bool | None = None
    store: bool = True
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    truncation: str | None = None
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None


FIELDS = Fields(
    (HARMLESS - {"metadata", "store"}) | {"client_metadata", "max_tool_calls", "stream_options"},
    {"background": (False,), "conversation": (), "prompt": (), "context_management": ([],)},
)


def chat_request(
    body: ResponseBody, items: Sequence[Mapping[str, Any]], store: ResponseStore, in_place: bool
) -> ChatRequest:
    """The same in our own words. Raises: UsageError."""
    options: dict[str, Any] = {"max_tokens": body.max_output_tokens}
    for name in ("temperature", "top_p"):
        if getattr(body, name) is not None:
            options[name] = getattr(body, name)
    if body.top_logprobs is not None or LOGPROBS in (body.include or ()):
        options["logprobs"] = min(body.top_logprobs or 0, 20)
    if body.truncation not in (None, "disabled"):
        raise UsageError("prompts are never cut here", where="truncation", expected="disabled")
    messages = ItemReader(store.item, in_place).read(body.instructions, items)
    reasoning = body.reasoning or {}
    effort = reasoning.get("effort")
    choice, tool_name, allowed = allowed_tools(body.tool_choice)
    tools = tools_of(body.tools or ())
    if allowed is not None:
        tools = [tool for tool in tools if tool["function"]["name"] in allowed]
    return ChatRequest(
        messages=tuple(messages),
        tools=tuple(tools),
        tool_choice=choice,
        tool_name=tool_name,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        format=read_reply_format((body.text or {}).get("format"), "text.format"),
        thinking_effort=effort if isinstance(effort, str) else None,
        options=cast(GenerateOptions, options),
    )


def tools_of(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Functions, which are flat here; tools that OpenAI's servers run themselves are passed over.

    Raises: UsageError for a function without a name.
    """
    written = []
    for index, tool in enumerate(tools):
        if tool.get("type") != "function":
            continue
        nested = tool.get("function")
        source = nested if isinstance(nested, Mapping) else tool
        if not isinstance(source.get("name"), str):
            raise UsageError("a function has a name", where=f"tools[{index}]")
        names = ("name", "description", "parameters", "strict")
        function = {name: source[name] for name in names if source.get(name) is not None}
        written.append({"type": "function", "function": function})
    return written


def allowed_tools(
    choice: str | Mapping[str, Any] | None,
) -> tuple[ToolChoice, str | None, set[str] | None]:
    """A choice, and the names that it leaves. Raises: UsageError."""
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        tools = choice.get("tools") or ()
        names = {str(each.get("name")) for each in tools if isinstance(each, Mapping)}
        mode, _ = tool_choice(str(choice.get("mode", "auto")))
        return mode, None, names
    return (*tool_choice(choice), None)


async def respond(call: Call, body: ResponseBody) -> None:
    """Answer with a response."""
    store = store_of(call.service)
    own = input_items(body.input or [])
    items = [*store.history(body.previous_response_id), *own]
    call.facts |= {"model": body.model, "items": len(items)}
    async with call.service.pool.lease(body.model) as served:
        asked = await _asked(served, body, items, store)
        replies = await begin_chat(call, served, asked)
        written = ResponseWriter(call, served.name, echo_of(body))

        def remember(response: Mapping[str, Any]) -> None:
            if body.store:
                store.add(response, own, items)

        if body.stream:
            await call.stream(HttpStream(written.events(replies, remember)))
        else:
            ((whole, ending),) = await read_whole(replies, 1)
            response = written.whole(whole, ending)
            remember(response)
            await call.answer(HttpAnswer(response))


async def _asked(
    served: ServedModel,
    body: ResponseBody,
    items: Sequence[Mapping[str, Any]],
    store: ResponseStore,
) -> ChatRequest:
    in_place = await asyncio.to_thread(lambda: served.writes_system_in_place)
    return chat_request(body, items, store, in_place)


def echo_of(body: ResponseBody) -> dict[str, Any]:
    """What a response repeats of its request."""
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": body.reasoning or {"effort": None, "summary": None},
        "store": body.store,
        "temperature": body.temperature,
        "text": body.text or {"format": {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_p": body.top_p,
        "truncation": "disabled",
    }


async def count(call: Call, body: ResponseBody) -> None:
    """The tokens of a prompt."""
    store = store_of(call.service)
    items = [*store.history(body.previous_response_id), *input_items(body.input or [])]
    async with call.service.pool.lease(body.model) as served:
        asked = await _asked(served, body, items, store)
        prompt = await asyncio.to_thread(chat_prompt, served, asked)
        content = {"object": "response.input_tokens", "input_tokens": len(prompt)}
        await call.answer(HttpAnswer(content))


async def show(call: Call, body: None) -> None:
    """A response that is remembered."""
    del body
    store = store_of(call.service)
    await call.answer(HttpAnswer(store.get(call.request.path_params["id"]).response))


async def forget(call: Call, body: None) -> None:
    """Forget a response."""
    del body
    id = call.request.path_params["id"]
    store_of(call.service).remove(id)
    await call.answer(HttpAnswer({"id": id, "object": "response", "deleted": True}))


async def list_items(call: Call, body: None) -> None:
    """What a response was asked with."""
    del body
    items = store_of(call.service).get(call.request.path_params["id"]).own
    content = {
        "object": "list",
        "data": items,
        "has_more": False,
        "first_id": items[0].get("id") if items else None,
        "last_id": items[-1].get("id") if items else None,
    }
    await call.answer(HttpAnswer(content))


async def cancel(call: Call, body: None) -> None:
    """Only work in the background can be cancelled, and there is none."""
    del body
    store_of(call.service).get(call.request.path_params["id"])
    raise UsageError("only a response in the background can be cancelled", where="background")


ROUTES = (
    Route("POST", "/v1/responses", respond, ResponseBody, FIELDS, "Answer with a response"),
    Route(
        "POST", "/v1/responses/input_tokens", count, ResponseBody, FIELDS, "The tokens of a prompt"
    ),
    Route("GET", "/v1/responses/{id}", show, about="A response that is remembered"),
    Route("DELETE", "/v1/responses/{id}", forget, about="Forget a response"),
    Route("POST", "/v1/responses/{id}/cancel", cancel, about="Cancel a response"),
    Route("GET", "/v1/responses/{id}/input_items", list_items, about="What it was asked with"),
)
