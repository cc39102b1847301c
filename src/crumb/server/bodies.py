"""A request's body: bytes from a client -> the record of its route.

In: the stream of a request, a limit of bytes and of seconds, the record that the route takes. Out:
the record. Every field is one of three: taken (it is in the record), harmless (named in a table and
left out), or refused: an unknown field too, by its name. What is null counts as not there.
Refuses what is no JSON object, numbers that JSON does not have, and nesting without end.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from crumb.errors import BodyTooLarge, TimeExceeded, UsageError

Body = TypeVar("Body", bound=msgspec.Struct)

WHERE = re.compile(r"^(?P<what>.*?)(?: - at `(?P<where>[^`]*)`)?$", re.DOTALL)


@dataclass(frozen=True)
class Fields:
    """What a protocol does with fields that its record does not have."""

    harmless: frozenset[str] = frozenset()  # they change no token
    refused: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Fields that would change the answer and are not built -> values that ask for nothing."""

    def strip(self, content: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
        """The fields that the record is made of. Raises: UsageError, naming the field."""
        taken = {each.encode_name for each in msgspec.structs.fields(kind)}
        rest: dict[str, Any] = {}
        for name, value in content.items():
            if value is None:
                continue
            if name in taken:
                rest[name] = value
            elif name in self.harmless:
                continue
            elif name not in self.refused:
                near = get_close_matches(name, taken, 1)
                raise UsageError(
                    "unknown field",
                    where=name[:100],
                    do=f"Did you mean {near[0]}?" if near else "Leave it out",
                )
            elif not any(_same(value, nothing) for nothing in self.refused[name]):
                raise UsageError(
                    "this field is not supported here",
                    where=name,
                    found=str(value)[:80],
                    do="Leave it out",
                )
        return rest


def _same(value: object, other: object) -> bool:
    return type(value) is type(other) and value == other


async def read_body(request: Request, limit_bytes: int, limit_seconds: float) -> bytes:
    """All bytes of a request. Raises: BodyTooLarge, TimeExceeded, ClientDisconnect."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit_bytes:
        raise _too_large(limit_bytes, announced[:20])
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limit_seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit_bytes:
                    raise _too_large(limit_bytes, f"{size} and more")
                chunks.append(chunk)
    except TimeoutError:
        raise TimeExceeded(
            "the request took too long to arrive", expected=f"{limit_seconds:g} seconds"
        ) from None
    return b"".join(chunks)


def _too_large(limit_bytes: int, size: object) -> BodyTooLarge:
    return BodyTooLarge(
        "the request is too large", expected=f"at most {limit_bytes} bytes", found=size
    )


def decode_body(content: bytes, kind: type[Body], fields: Fields) -> Body:
    """The record of a body. Raises: UsageError."""
    try:
        read = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the body is no JSON: {str(error)[:200]}") from error
    except RecursionError:
        raise UsageError("the body is nested too deeply") from None
    if not isinstance(read, dict):
        raise UsageError("the body is no JSON object", found=type(read).__name__)
    return as_record(fields.strip(read, kind), kind)


def as_record(content: Mapping[str, Any], kind: type[Body]) -> Body:
    """A record of values that are checked. Raises: UsageError, naming the field."""
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        said = WHERE.match(str(error))
        assert said is not None, "matches anything"
        where = (said["where"] or "").removeprefix("$").lstrip(".") or None
        raise UsageError(said["what"][:300], where=where) from error
    except RecursionError:
        raise UsageError("the body is nested too deeply") from None
