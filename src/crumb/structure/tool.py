"""The tools that a request offers.

In: tools as clients send them: {"type": "function", "function": {"name", "description",
"parameters"}}. Out: Tool records. Refuses tools without a name, names that no format could write,
and two tools of one name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crumb.errors import UsageError

NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.\-]{0,127}")

NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class Tool:
    """A function that a model may call."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=lambda: NO_PARAMETERS)  # a JSON schema
    description: str = ""

    @property
    def properties(self) -> Mapping[str, Any]:
        """Schemas of the parameters by name."""
        properties = self.parameters.get("properties")
        return properties if isinstance(properties, Mapping) else {}

    @property
    def required(self) -> frozenset[str]:
        """Parameters that a call must have."""
        required = self.parameters.get("required")
        return frozenset(required if isinstance(required, list | tuple) else ())


def read_tools(tools: Sequence[Mapping[str, Any]] | None) -> tuple[Tool, ...]:
    """Tools of a request. Raises: UsageError."""
    read = tuple(_read_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools or ()))
    names = [tool.name for tool in read]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError("two tools have one name", where="tools", found=twice)
    return read


def _read_tool(tool: object, where: str) -> Tool:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping):
        raise UsageError("a tool is a mapping with a function", where=where, found=str(tool)[:80])
    name, parameters = function.get("name"), function.get("parameters") or NO_PARAMETERS
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UsageError(
            "a tool has no name that a model could write",
            where=f"{where}.function.name",
            expected="letters, digits, _, . and -, at most 128",
            found=str(name)[:80],
        )
    if not isinstance(parameters, Mapping):
        raise UsageError(
            "a tool's parameters are a JSON schema",
            where=f"{where}.function.parameters",
            found=str(parameters)[:80],
        )
    return Tool(name, parameters, str(function.get("description") or ""))
