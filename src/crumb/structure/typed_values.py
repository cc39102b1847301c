"""Arguments that a model writes as bare text, given their types by the tool's schema.

In: a name, a text, a tool. Out: JSON. What has no type there that fits is a text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from crumb.structure.tool import Tool


def typed_json(tool: Tool, name: str, text: str) -> str:
    """A bare value as JSON."""
    kinds = kinds_of(tool.properties.get(name))
    if "null" in kinds and text.strip() in ("null", "None"):
        return "null"
    for kind, read in READERS.items():
        if kind in kinds or not kinds - {"null"}:
            value = read(text.strip())
            if value is not None:
                return value
    return json.dumps(text, ensure_ascii=False)


def kinds_of(schema: object) -> frozenset[str]:
    """JSON types that a schema names; none: it says nothing."""
    if not isinstance(schema, Mapping):
        return frozenset()
    kinds = schema.get("type")
    named = {kinds} if isinstance(kinds, str) else set(kinds or ())
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        named |= kinds_of(part)
    for value in schema.get("enum", ()):
        named |= {KINDS[type(value)]} if type(value) in KINDS else set()
    return frozenset(named)


KINDS: Mapping[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
}


def is_text(tool: Tool, name: str) -> bool:
    """Whether a parameter is a text and nothing else."""
    return kinds_of(tool.properties.get(name)) == {"string"}


def _boolean(text: str) -> str | None:
    lower = text.lower()
    return lower if lower in ("true", "false") else None


def _of(*kinds: type) -> Callable[[str], str | None]:
    def read(text: str) -> str | None:
        try:
            value: Any = json.loads(text)
        except ValueError:
            return None
        fits = isinstance(value, kinds) and not isinstance(value, bool)
        return text if fits and "\n" not in text else (json.dumps(value) if fits else None)

    return read


READERS: Mapping[str, Callable[[str], str | None]] = {
    "boolean": _boolean,
    "integer": _of(int),
    "number": _of(int, float),
    "array": _of(list),
    "object": _of(dict),
}
"""Kind -> a text as JSON of it, or None; what they all refuse is a text."""
