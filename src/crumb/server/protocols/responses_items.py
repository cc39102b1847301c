"""Items of /v1/responses as messages of a chat.

In: input as a text or items: messages, calls, their outputs, reasoning, references to earlier
items. Out: messages as chat templates take them. Developers are the system.
Refuses pictures, files, and items that are not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crumb.errors import ModelNotFound, UsageError
from crumb.server.protocols.openai import arguments_object, text_content
from crumb.server.turns import add_message, add_system

SYSTEM_ROLES = ("system", "developer")

ItemOf = Callable[[str], Mapping[str, Any] | None]
"""The item of an id that a response gave out."""


def input_items(content: str | Sequence[Any]) -> list[dict[str, Any]]:
    """Input as items. Raises: UsageError."""
    if isinstance(content, str):
        return [{"type": "message", "role": "user", "content": content}]
    items: list[dict[str, Any]] = []
    for index, item in enumerate(content):
        if not isinstance(item, Mapping):
            raise UsageError("an item is an object", where=f"input[{index}]")
        items.append(dict(item))
    return items


class ItemReader:
    """Reads items into messages."""

    def __init__(self, item_of: ItemOf, in_place: bool) -> None:
        """`in_place`: the template writes a system message in the middle where it stands."""
        self._item_of, self._in_place = item_of, in_place
        self._messages: list[dict[str, Any]] = []
        self._thoughts: list[str] = []  # that belong to the next answer

    def read(
        self, instructions: str | None, items: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """All messages. Raises: UsageError, ModelNotFound for an unknown reference."""
        if instructions:
            add_system(self._messages, instructions, self._in_place)
        for index, item in enumerate(items):
            self._item(item, f"input[{index}]")
        if not self._messages:
            raise UsageError("there is no input", where="input")
        return self._messages

    def _item(self, item: Mapping[str, Any], where: str) -> None:
        kind = item.get("type") or ("message" if "role" in item else "")
        if kind not in READERS:
            raise UsageError("no such kind of item", where=where, found=str(kind)[:40])
        READERS[kind](self, item, where)

    def _message(self, item: Mapping[str, Any], where: str) -> None:
        role = item.get("role")
        content = text_content(item.get("content"), f"{where}.content") or ""
        if role in SYSTEM_ROLES:
            add_system(self._messages, content, self._in_place)
        elif role == "assistant":
            self._answer({"role": role, "content": content})
        elif role == "user":
            add_message(self._messages, {"role": role, "content": content})
        else:
            raise UsageError("no such role", where=where, found=str(role)[:40])

    def _answer(self, message: dict[str, Any]) -> None:
        if self._thoughts:
            message["reasoning_content"] = "\n".join(self._thoughts)
            self._thoughts = []
        add_message(self._messages, message)

    def _call(self, item: Mapping[str, Any], where: str) -> None:
        name = item.get("name")
        if not isinstance(name, str):
            raise UsageError("a call has a name", where=where)
        function = {"name": name, "arguments": arguments_object(item.get("arguments"))}
        call = {"id": str(item.get("call_id") or ""), "type": "function", "function": function}
        self._answer({"role": "assistant", "content": "", "tool_calls": [call]})

    def _output(self, item: Mapping[str, Any], where: str) -> None:
        output = text_content(item.get("output"), f"{where}.output") or ""
        call = str(item.get("call_id") or "")
        add_message(self._messages, {"role": "tool", "tool_call_id": call, "content": output})

    def _reasoning(self, item: Mapping[str, Any], where: str) -> None:
        del where
        parts = [*(item.get("content") or ()), *(item.get("summary") or ())]
        texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
        self._thoughts += [text for text in texts if isinstance(text, str)]

    def _reference(self, item: Mapping[str, Any], where: str) -> None:
        earlier = self._item_of(str(item.get("id")))
        if earlier is None:
            raise ModelNotFound("no such item", where=where, found=str(item.get("id"))[:80])
        self._item(earlier, where)


READERS: Mapping[str, Callable[[ItemReader, Mapping[str, Any], str], None]] = {
    "message": ItemReader._message,
    "function_call": ItemReader._call,
    "function_call_output": ItemReader._output,
    "reasoning": ItemReader._reasoning,
    "item_reference": ItemReader._reference,
}
