"""Read single values of a checkpoint's configuration, each checked.

In: a configuration as config.json holds it. Out: an integer, a number, a flag, or a kind per block.
An explicit null is not the same as a missing key: callers say what each means.
Refuses values of another type (a bool is no integer), out of range, NaN or infinite; messages
name the key and show at most 80 characters of the value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crumb.errors import CheckpointError

Configuration = Mapping[str, Any]

LIMIT = 1 << 24
"""No size in a configuration may exceed this."""

MISSING = object()


def shown(value: object) -> str:
    """A value from a file, short enough for a message."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= 80 else f"{text[:77]}..."


def refuse(key: str, expected: str, found: object) -> CheckpointError:
    """The error for one value."""
    return CheckpointError(
        "the configuration has no usable value",
        where=f"config.json: {key}",
        expected=expected,
        found="no such key" if found is MISSING else shown(found),
    )


def as_integer(value: object, key: str, highest: int = LIMIT, lowest: int = 1) -> int:
    """An integer from lowest to highest. Raises: CheckpointError."""
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise refuse(key, f"an integer from {lowest} to {highest}", value)
    return value


def as_number(value: object, key: str, lowest: float = 1e-12, highest: float = 1e12) -> float:
    """A number from lowest to highest. Raises: CheckpointError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refuse(key, "a number", value)
    if not lowest <= value <= highest:  # NaN comes here too
        raise refuse(key, f"a number from {lowest:g} to {highest:g}", value)
    return float(value)


def read_flag(configuration: Configuration, key: str, default: bool) -> bool:
    """True or false; a missing key means the default. Raises: CheckpointError."""
    value = configuration.get(key, default)
    if not isinstance(value, bool):
        raise refuse(key, "true or false", value)
    return value


def check_kinds(kinds: object, key: str, blocks: int, allowed: Sequence[str]) -> list[str]:
    """One allowed kind per block. Raises: CheckpointError."""
    if not isinstance(kinds, list | tuple) or len(kinds) != blocks:
        raise refuse(key, f"a list of {blocks} kinds, one per block", kinds)
    for kind in kinds:
        if kind not in allowed:
            raise refuse(key, f"kinds among {', '.join(allowed)}", kind)
    return list(kinds)


def repeat_kinds(pattern: object, key: str, blocks: int) -> list[object]:
    """[[kinds, times], ...] written out, stopping once past `blocks`. Raises: CheckpointError."""
    kinds: list[object] = []
    for item in pattern if isinstance(pattern, list | tuple) else [pattern]:
        names, times = item if isinstance(item, list | tuple) and len(item) == 2 else (None, None)
        if not isinstance(names, list | tuple):
            raise refuse(key, "a list of [kinds, times]", pattern)
        kinds += list(names[: blocks + 1]) * min(as_integer(times, key), blocks + 1)
        if len(kinds) > blocks:
            break
    return kinds


def read_window(configuration: Configuration, key: str, default: int | None) -> int | None:
    """A window in tokens; null means none. Raises: CheckpointError."""
    value = configuration.get(key, default)
    return None if value is None else as_integer(value, key)


def read_object(configuration: Configuration, key: str) -> dict[str, Any]:
    """An object; null or a missing key means an empty one. Raises: CheckpointError."""
    value = configuration.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise refuse(key, "an object", value)
    return dict(value)
