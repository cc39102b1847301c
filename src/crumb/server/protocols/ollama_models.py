"""What Ollama's clients ask of a server and its models: /api/tags, show, ps, version.

In: names, as `model` or `name`. Out: what the files say, under Ollama's words.
Refuses to fetch, make, copy or delete models: that is done before the server starts.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

import msgspec

from crumb.errors import CrumbError, UsageError
from crumb.server.bodies import Fields
from crumb.server.protocol import Call, HttpAnswer, Route
from crumb.server.protocols.ollama_lines import stamp
from crumb.server.served_model import ModelState, ServedModel

VERSION = "0.14.0"
"""Of Ollama's API that this speaks; clients look for a number of this shape."""

FOREVER_SECONDS = 10 * 365 * 86400.0


class NotHere(CrumbError):
    """Something that Ollama does and this server does not."""

    http_status = 501


class ShowBody(msgspec.Struct, kw_only=True):
    """A model by its name; some clients send `name`."""

    model: str | None = None
    name: str | None = None
    verbose: bool = False


FIELDS = Fields(frozenset(("system", "template", "options")))


async def root(call: Call, body: None) -> None:
    """What Ollama says at its root."""
    del body
    await call.answer(HttpAnswer(b"Ollama is running", media_type="text/plain"))


async def version(call: Call, body: None) -> None:
    """The version of the API."""
    del body
    await call.answer(HttpAnswer({"version": VERSION}))


async def tags(call: Call, body: None) -> None:
    """All models."""
    del body
    models = [tag(each) for each in call.service.pool.models]
    await call.answer(HttpAnswer({"models": models}))


async def running(call: Call, body: None) -> None:
    """The models in memory."""
    del body
    loaded = [each for each in call.service.pool.models if each.state is ModelState.LOADED]
    await call.answer(HttpAnswer({"models": [_running(each) for each in loaded]}))


async def show(call: Call, body: ShowBody) -> None:
    """One model."""
    name = body.model or body.name
    if not name:
        raise UsageError("a model has a name", where="model")
    served = call.service.pool.find(name)
    prefix = served.family
    content = {
        "modelfile": f"# served by crumb\nFROM {served.name}\n",
        "parameters": f"num_ctx {served.context_tokens}",
        "template": "{{ .Prompt }}",
        "details": details(served),
        "model_info": {
            "general.architecture": prefix,
            "general.parameter_count": served.parameters,
            f"{prefix}.context_length": served.context_tokens,
            f"{prefix}.vocab_size": served.checkpoint.plan.vocabulary,
        },
        "capabilities": served.capabilities,
        "modified_at": stamp(served.created),
    }
    await call.answer(HttpAnswer(content))


def tag(served: ServedModel) -> dict[str, Any]:
    """A model of a list."""
    return {
        "name": served.name,
        "model": served.name,
        "modified_at": stamp(served.created),
        "size": served.size_bytes,
        "digest": hashlib.sha256(str(served.checkpoint.path).encode()).hexdigest(),
        "details": details(served),
        "capabilities": served.capabilities,
    }


def details(served: ServedModel) -> dict[str, Any]:
    """Its family, size and bits."""
    billions = served.parameters / 1e9
    size = f"{billions:.1f}B" if billions >= 1 else f"{served.parameters / 1e6:.0f}M"
    return {
        "parent_model": "",
        "format": "gguf" if served.checkpoint.path.suffix.lower() == ".gguf" else "safetensors",
        "family": served.family,
        "families": [served.family],
        "parameter_size": size,
        "quantization_level": f"{served.bits_per_weight:.1f} bits",
    }


def _running(served: ServedModel) -> dict[str, Any]:
    keep = served.keep_seconds
    left = FOREVER_SECONDS if keep is None else min(keep, FOREVER_SECONDS)
    return tag(served) | {
        "expires_at": stamp(time.time() + left),
        "size": served.plan.total_bytes,
        "size_vram": 0,
        "context_length": served.context_tokens,
    }


async def not_here(call: Call, body: None) -> None:
    """What this server does not do."""
    del body
    raise NotHere(
        "models of this server are not changed over HTTP",
        where=call.request.url.path[:100],
        do="Give them to `crumb serve` when it starts",
    )


CHANGES = (
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/blobs/{digest}"),
    ("HEAD", "/api/blobs/{digest}"),
)

ROUTES = (
    Route("GET", "/", root, about="Whether anybody is there"),
    Route("HEAD", "/", root, about="Whether anybody is there", open=True),
    Route("GET", "/api/version", version, about="The version of Ollama's API"),
    Route("GET", "/api/tags", tags, about="All models"),
    Route("GET", "/api/ps", running, about="The models in memory"),
    Route("POST", "/api/show", show, ShowBody, FIELDS, "One model"),
    *(
        Route(method, path, not_here, about="Not here", in_document=False)
        for method, path in CHANGES
    ),
)
