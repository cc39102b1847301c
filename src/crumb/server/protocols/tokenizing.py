"""POST /tokenize and /detokenize, GET /tokenizer_info: what a model's tokenizer does.

In: a text or a chat, or tokens. Out: the other, under the names of vLLM and of llama.cpp at once.
Refuses tokens that the model does not have.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from crumb.errors import UsageError
from crumb.files.model_files import optional_json
from crumb.requests.chat_request import ChatRequest
from crumb.server.bodies import Fields
from crumb.server.chat import chat_prompt
from crumb.server.protocol import Call, HttpAnswer, Route
from crumb.server.protocols.openai_chat import MessageBody, message
from crumb.server.served_model import ServedModel
from crumb.tokenizer.chat_template import FILE


class TokenizeBody(msgspec.Struct, kw_only=True):
    """A text or a chat."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: list[MessageBody] | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    return_token_strs: bool = False
    with_pieces: bool = False


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """Tokens."""

    tokens: list[int]
    model: str | None = None


FIELDS = Fields(frozenset({"parse_special", "add_generation_prompt"}))


async def tokenize(call: Call, body: TokenizeBody) -> None:
    """A text's tokens."""
    async with call.service.pool.lease(body.model) as served:
        tokens = await asyncio.to_thread(tokens_of, served, body)
        content: dict[str, Any] = {
            "tokens": tokens,
            "count": len(tokens),
            "max_model_len": served.context_tokens,
        }
        if body.return_token_strs:
            content["token_strs"] = [served.loaded.tokenizer.piece(each) for each in tokens]
        if body.with_pieces:
            text = served.loaded.tokenizer.token_text
            content["tokens"] = [{"id": each, "piece": text(each)} for each in tokens]
        await call.answer(HttpAnswer(content))


def tokens_of(served: ServedModel, body: TokenizeBody) -> list[int]:
    """Tokens of what was sent. Raises: UsageError."""
    if body.messages is not None:
        messages = tuple(message(each, index) for index, each in enumerate(body.messages))
        return list(chat_prompt(served, ChatRequest(messages)))
    text = body.content if body.prompt is None else body.prompt
    if text is None:
        raise UsageError("there is no text", where="prompt")
    # llama.cpp's clients send content, and mean without special tokens
    special = body.prompt is not None
    for asked in (body.add_special_tokens, body.add_special):
        special = special if asked is None else asked
    return served.loaded.tokenizer.encode(text, special=special)


async def detokenize(call: Call, body: DetokenizeBody) -> None:
    """The text of tokens."""
    async with call.service.pool.lease(body.model) as served:
        vocabulary = served.checkpoint.plan.vocabulary
        outside = [token for token in body.tokens if not 0 <= token < vocabulary]
        if outside:
            raise UsageError(
                "a token is not in the model's vocabulary",
                where="tokens",
                expected=f"0 to {vocabulary - 1}",
                found=outside[0],
            )
        text = await asyncio.to_thread(served.loaded.tokenizer.decode, body.tokens)
        await call.answer(HttpAnswer({"prompt": text, "content": text}))


async def tokenizer_info(call: Call, body: None) -> None:
    """Special tokens and the chat template."""
    del body
    async with call.service.pool.lease(call.request.query_params.get("model")) as served:
        await call.answer(HttpAnswer(await asyncio.to_thread(info_of, served)))


def info_of(served: ServedModel) -> dict[str, Any]:
    """What the tokenizer's files say."""
    tokenizer, files = served.loaded.tokenizer, served.checkpoint.files
    settings = optional_json(files, "tokenizer_config.json")
    template = files.read(FILE)
    end = min(tokenizer.end_tokens, default=None)
    named = {name: settings.get(name) for name in ("eos_token", "bos_token", "pad_token")}
    texts = {
        name: each.get("content") if isinstance(each, dict) else each
        for name, each in named.items()
    }
    if texts["eos_token"] is None and end is not None:
        texts["eos_token"] = tokenizer.piece(end)
    if texts["bos_token"] is None and tokenizer.begin_token is not None:
        texts["bos_token"] = tokenizer.piece(tokenizer.begin_token)
    return {
        **texts,
        "eos_token_id": end,
        "bos_token_id": tokenizer.begin_token,
        "vocab_size": served.checkpoint.plan.vocabulary,
        "model_max_length": served.context_tokens,
        "chat_template": settings.get("chat_template") if template is None else template.decode(),
    }


ROUTES = (
    Route("POST", "/tokenize", tokenize, TokenizeBody, FIELDS, "Tokens of a text or a chat"),
    Route("POST", "/detokenize", detokenize, DetokenizeBody, FIELDS, "The text of tokens"),
    Route("GET", "/tokenizer_info", tokenizer_info, about="Special tokens and chat template"),
)
