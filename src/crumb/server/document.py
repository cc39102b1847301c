"""The OpenAPI document of the server: every table as it is, made when it is asked for.

In: the protocols' routes with their records. Out: GET /openapi.json. Nothing is written twice: a
field that a record has is in the document, one that it has not is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec

from crumb import __version__
from crumb.server.protocol import Call, HttpAnswer, ProtocolTable, Route

PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


def openapi(protocols: Sequence[ProtocolTable]) -> dict[str, Any]:
    """The document of these protocols."""
    bodies = {route.body for each in protocols for route in each.routes if route.body is not None}
    kinds = sorted(bodies, key=lambda kind: kind.__name__)
    schemas, components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    schema_of = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for protocol in protocols:
        for route in protocol.routes:
            if route.in_document:
                path = PARAMETER.sub(r"{\1}", route.path)
                operation = _operation(protocol, route, schema_of)
                paths.setdefault(path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Crumb", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(protocol: ProtocolTable, route: Route, schema_of: Any) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "tags": [protocol.name],
        "summary": route.about,
        "responses": {
            "200": {"description": "The answer"},
            "default": {"description": f"An error in the words of {protocol.name}"},
        },
    }
    if not route.open:
        operation["security"] = [{"key": []}]
    names = PARAMETER.findall(route.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if route.body is not None:
        content = {"application/json": {"schema": schema_of[route.body]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


@cache
def _all() -> bytes:
    from crumb.server.protocols import PROTOCOLS

    return msgspec.json.encode(openapi(PROTOCOLS))


async def document(call: Call, body: None) -> None:
    """The document."""
    del body
    await call.answer(HttpAnswer(_all()))
