"""GET /v1/models, /v1/models/{id}, and loading and unloading them.

In: names. Out: models with what they are and whether they are loaded, in OpenAI's, Anthropic's and
Codex' keys at once. Refuses names that are not served.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from crumb.server.protocol import Call, HttpAnswer, Route
from crumb.server.served_model import ServedModel


class ModelBody(msgspec.Struct, kw_only=True):
    """A model by its name."""

    model: str


def model_object(served: ServedModel) -> dict[str, Any]:
    """One model; `crumb` holds what only this server says."""
    made = datetime.fromtimestamp(served.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "crumb",
        "max_model_len": served.context_tokens,
        "type": "model",
        "display_name": served.name,
        "created_at": made,
        "crumb": served.facts(),
    }


async def list_models(call: Call, body: None) -> None:
    """All models."""
    del body
    data = [model_object(each) for each in call.service.pool.models]
    content = {
        "object": "list",
        "data": data,
        "has_more": False,
        "first_id": data[0]["id"],
        "last_id": data[-1]["id"],
        "models": [],  # Codex looks for its own list
    }
    await call.answer(HttpAnswer(content))


async def show_model(call: Call, body: None) -> None:
    """One model."""
    del body
    served = call.service.pool.find(call.request.path_params["id"])
    await call.answer(HttpAnswer(model_object(served)))


async def load_model(call: Call, body: ModelBody) -> None:
    """Load a model before it is asked."""
    served = await call.service.pool.load(body.model)
    await call.answer(HttpAnswer({"success": True, "model": model_object(served)}))


async def unload_model(call: Call, body: ModelBody) -> None:
    """Let a model's memory go."""
    served = await call.service.pool.unload(body.model)
    await call.answer(HttpAnswer({"success": True, "model": model_object(served)}))


ROUTES = (
    Route("GET", "/v1/models", list_models, about="The models, and whether they are loaded"),
    Route("POST", "/v1/models/load", load_model, ModelBody, about="Load a model now"),
    Route("POST", "/v1/models/unload", unload_model, ModelBody, about="Let a model's memory go"),
    Route("GET", "/v1/models/{id:path}", show_model, about="One model"),
)
