"""POST /v1/embeddings: texts as vectors.

In: texts or tokens, one or many. Out: vectors of length 1, as numbers or as base64 of f32, which is
what OpenAI's client asks for by itself. Fewer dimensions are the first ones, of length 1 again.
Refuses more dimensions than the model has.
"""

from __future__ import annotations

import base64
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from crumb.errors import UsageError
from crumb.requests.reading_request import EmbedRequest
from crumb.server.protocol import Call, HttpAnswer, Route
from crumb.server.protocols.openai import plain_fields
from crumb.server.protocols.openai_completions import prompts_of
from crumb.server.readings import read_all


class EmbeddingBody(msgspec.Struct, kw_only=True):
    """What vectors are asked with."""

    input: str | list[Any]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


async def embed(call: Call, body: EmbeddingBody) -> None:
    """Vectors of texts."""
    prompts = prompts_of(body.input, "input")
    call.facts |= {"model": body.model, "prompts": len(prompts)}
    async with call.service.pool.lease(body.model) as served:
        embeddings = await read_all(call, served, [EmbedRequest(each) for each in prompts])
        vectors = [shortened(each.vector, body.dimensions) for each in embeddings]
        tokens = sum(each.tokens for each in embeddings)
        data = [
            {"object": "embedding", "index": index, "embedding": encoded(vector, body)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        call.facts["prompt_tokens"] = tokens
        content = {"object": "list", "data": data, "model": served.name, "usage": usage}
        await call.answer(HttpAnswer(content))


def encoded(vector: NDArray[np.float32], body: EmbeddingBody) -> Any:
    """A vector as it is asked for."""
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


def shortened(vector: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """The first dimensions, of length 1 again. Raises: UsageError."""
    if dimensions is None:
        return vector
    if not 1 <= dimensions <= len(vector):
        raise UsageError(
            "the model has no such number of dimensions",
            where="dimensions",
            expected=f"1 to {len(vector)}",
            found=dimensions,
        )
    first = vector[:dimensions]
    return np.asarray(first / (float(np.linalg.norm(first)) or 1.0), np.float32)


ROUTES = (
    Route("POST", "/v1/embeddings", embed, EmbeddingBody, plain_fields({}), "Vectors of texts"),
)
