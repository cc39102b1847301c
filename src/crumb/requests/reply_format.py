"""What the text of an answer is held to: JSON of a schema, an expression, a grammar; how it thinks.

In: a form as clients send it (response_format of OpenAI's API, in both of its shapes), or a record.
Out: a ReplyFormat, ThinkingRules. Refuses forms that are none; whether a schema or grammar can be
held to is found out by `structure/matcher.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from crumb.errors import UsageError


class ReplyKind(StrEnum):
    """What the text of an answer has to be."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    GRAMMAR = "grammar"  # of Lark, as llguidance reads it
    REGEX = "regex"


@dataclass(frozen=True)
class ReplyFormat:
    """A form that the answer is held to."""

    kind: ReplyKind
    schema: Mapping[str, Any] | bool | None = None  # of JSON_SCHEMA
    text: str | None = None  # of GRAMMAR and REGEX
    opens: tuple[str, ...] = ()  # marks at which it begins, before and after which text is free


@dataclass(frozen=True)
class ThinkingRules:
    """How a model's thoughts are marked, and how long they may be."""

    open: str
    close: str
    begins_open: bool = False  # the prompt ends within the thoughts already
    most_tokens: int | None = None  # then they are ended; None: as long as the model likes
    farewell: str = "\n"  # written before the closing mark where they are ended
    follows: str = ""  # written behind it then, where no form says what comes


TEXT_KEYS = {"grammar": ReplyKind.GRAMMAR, "lark": ReplyKind.GRAMMAR, "regex": ReplyKind.REGEX}
"""Kinds that are one text, and the key that holds it: as the kind is called, or `value`."""


def read_reply_format(value: object, where: str = "response_format") -> ReplyFormat | None:
    """A form as clients send it; None for plain text. Raises: UsageError."""
    if value is None or isinstance(value, ReplyFormat):
        return value
    kind = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or kind == "text":
        if kind == "text":
            return None
        raise UsageError("not a form of an answer", where=where, found=str(value)[:80])
    if kind == "json_object" and value.get("schema") is None:
        return ReplyFormat(ReplyKind.JSON_OBJECT)
    if kind in ("json_schema", "json_object"):  # llama.cpp's clients give an object a schema
        nested = value.get("json_schema")
        schema = (nested if isinstance(nested, Mapping) else value).get("schema")
        if not isinstance(schema, Mapping | bool):
            raise UsageError(
                "a form of an answer has no schema",
                where=f"{where}.json_schema.schema",
                expected="a JSON schema",
                found=str(schema)[:80],
            )
        return ReplyFormat(ReplyKind.JSON_SCHEMA, schema=schema)
    if kind in TEXT_KEYS:
        text = value.get(str(kind), value.get("value"))
        if not isinstance(text, str):
            raise UsageError("a form of an answer has no text", where=f"{where}.{kind}")
        return ReplyFormat(TEXT_KEYS[str(kind)], text=text)
    raise UsageError(
        "no such form of an answer",
        where=where,
        expected=f"text, json_object, json_schema, {', '.join(TEXT_KEYS)}",
        found=str(kind)[:80],
    )
