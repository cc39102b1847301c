"""A chat as the text a model was trained to read, written by the template in its directory.

In: a model directory (chat_template.jinja, or chat_template in tokenizer_config.json), then
messages. Out: a text to be encoded with special=False: the template writes the special tokens.
Templates are programs of strangers: bounded_templates.py runs them. A message may contain special
tokens; they mean what they say. Content is given as the template wants it: a text, or parts.
Refuses directories without a template, templates that fail or do not end, content that is no JSON.
Source: what a template may expect is defined by transformers' apply_chat_template.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError

from crumb.errors import CheckpointError, CrumbError, UsageError
from crumb.files.model_files import ModelFiles, optional_json
from crumb.tokenizer.bounded_templates import BoundedEnvironment

FILE = "chat_template.jinja"
DEFAULT, WITH_TOOLS = "default", "tool_use"
"""Names in a list of templates: for chats, and for chats with tools where there is one."""

PROBE = "seven swans"
"""A text by which a template shows whether it writes a message's content."""

RESERVED = ("messages", "tools", "documents", "add_generation_prompt")


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str  # system, user, assistant, tool, or what else the template knows
    content: str


class ChatTemplate:
    """A model's template, ready to render; renderings of one template take turns."""

    def __init__(
        self, templates: Mapping[str, str], tokens: Mapping[str, str], where: Path | None = None
    ) -> None:
        """Named templates, and variables such as bos_token. Raises: CheckpointError."""
        self._where, self._tokens = where, dict(tokens)
        self._environment = BoundedEnvironment()
        self._sources = dict(templates)
        self._templates = {name: self._compile(source) for name, source in templates.items()}
        self._turn = threading.Lock()
        self._shapes: dict[str, ContentShape] = {}

    def source(self, has_tools: bool = False) -> str:
        """The program that writes a chat. Raises: UsageError."""
        return self._sources[self._name(has_tools)]

    def render(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a chat. Mappings are messages with more than a role and content.

        `variables` are further switches that a template may know, such as enable_thinking.
        Raises: UsageError when the template refuses the messages, CheckpointError when it fails.
        """
        if not messages:
            raise UsageError("this chat has no messages", where="messages")
        for name in RESERVED:
            if name in (variables or {}):
                raise UsageError("this variable of the chat template is taken", where=name)
        name = self._name(tools is not None)
        values = {
            "messages": [_as_mapping(message) for message in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            context = _plain(variables or {}) | _plain(values)
            context["messages"] = self._shape(name).apply(context["messages"])
            return self._run(name, context)
        except CrumbError:
            raise
        except Exception as error:  # a template's mistakes are any of Python's
            raise self._failure("the chat template fails", error) from error

    def _run(self, name: str, context: Mapping[str, Any]) -> str:
        with self._turn:
            return self._environment.run(self._templates[name], {**self._tokens, **context})

    def _shape(self, name: str) -> ContentShape:
        """What a template takes as content, found out by one message of each shape."""
        if name not in self._shapes:
            as_text, as_parts = (self._probe(name, each) for each in (PROBE, _parts(PROBE)))
            takes_parts = PROBE in as_parts and "text'" not in as_parts  # not a list as Python's
            neither = not takes_parts and PROBE not in as_text  # it wants more than one message
            self._shapes[name] = ContentShape(neither or PROBE in as_text, neither or takes_parts)
        return self._shapes[name]

    def _probe(self, name: str, content: Any) -> str:
        """What a template makes of one message; nothing where it fails."""
        message = {"role": "user", "content": content}
        values = {"messages": [message], "tools": None, "documents": None}
        try:
            return self._run(name, values | {"add_generation_prompt": False})
        except Exception:  # a template may want more than this message
            return ""

    def _name(self, has_tools: bool) -> str:
        names = (WITH_TOOLS, DEFAULT) if has_tools else (DEFAULT,)
        for name in names:
            if name in self._templates:
                return name
        raise UsageError(
            "there is no chat template for this chat",
            where=self._where,
            expected=f"one named {' or '.join(names)}",
            found=", ".join(self._templates)[:80] or "none",
        )

    def _compile(self, source: str) -> Template:
        try:
            return self._environment.bounded(source)
        except TemplateSyntaxError as error:
            line = f"line {error.lineno}: {error.message}"
            raise self._failure("the chat template cannot be read", line) from error
        except (RecursionError, TemplateError, ValueError) as error:
            raise self._failure("the chat template cannot be read", error) from error

    def _failure(self, what: str, error: object) -> CheckpointError:
        return CheckpointError(f"{what}: {str(error)[:200]}", where=self._where)


@dataclass(frozen=True)
class ContentShape:
    """What a template takes as a message's content."""

    text: bool
    parts: bool  # [{"type": "text", "text": ...}, ...]

    def apply(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Messages whose content the template can write."""
        return [
            {
                name: self._content(item) if name == "content" else item
                for name, item in each.items()
            }
            for each in messages
        ]

    def _content(self, content: Any) -> Any:
        if isinstance(content, str):
            return content if self.text else _parts(content)
        if self.parts or not isinstance(content, list):
            return content
        texts = [each.get("text") for each in content if isinstance(each, dict)]
        written = [text for text in texts if isinstance(text, str)]
        if len(written) == len(content):
            return "".join(written)
        raise UsageError(
            "the chat template of this model takes texts alone",
            where="messages: content",
            found="a part that is no text",
        )


def _parts(text: str) -> list[dict[str, str]]:
    """A text as content in parts."""
    return [{"type": "text", "text": text}]


def load_chat_template(files: ModelFiles) -> ChatTemplate:
    """The chat template of a model.

    Raises: UsageError when it has none, CheckpointError when it cannot be read.
    """
    settings = optional_json(files, "special_tokens_map.json")
    settings |= optional_json(files, "tokenizer_config.json")
    where, templates = files.path / "tokenizer_config.json", settings.get("chat_template")
    content = files.read(FILE)
    if content is not None:
        where = files.path / FILE
        try:
            templates = content.decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"cannot be read: {error}", where=where) from error
    if templates is None:
        raise UsageError(
            "this model has no chat template",
            where=files.path,
            do=f"Give the prompt as plain text, or put the model's {FILE} into its directory",
        )
    tokens = {name: _content(value) for name, value in settings.items() if name.endswith("_token")}
    named = {name: text for name, text in tokens.items() if text is not None}
    return ChatTemplate(_named(templates, where), named, where)


def _named(templates: Any, where: Path) -> dict[str, str]:
    """Templates by name, from a text or a list of {name, template}."""
    if isinstance(templates, str):
        return {DEFAULT: templates}
    entries = templates if isinstance(templates, list) else [None]
    named = {
        entry["name"]: entry["template"]
        for entry in entries
        if isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("template"), str)
    }
    if len(named) != len(entries):
        raise CheckpointError(
            "chat_template is not what it should be",
            where=where,
            expected="a text, or a list of objects with a name and a template, no name twice",
            found=type(templates).__name__,
        )
    return named


def _content(token: Any) -> str | None:
    """A special token's text, from its text or its entry."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""What clients call a message's thoughts; templates read one of the first two."""


def _as_mapping(message: Message | Mapping[str, Any]) -> Mapping[str, Any]:
    """A message as a template reads it; clients send null for what is not there."""
    if isinstance(message, Message):
        return {"role": message.role, "content": message.content}
    if not isinstance(message, Mapping):
        raise UsageError("a message has a role and content", found=type(message).__name__)
    said = {name: value for name, value in message.items() if value is not None}
    thought = next((said[name] for name in THOUGHTS if name in said), None)
    return said if thought is None else {THOUGHTS[1]: thought, **said, THOUGHTS[0]: thought}


def _plain(value: Any) -> Any:
    """A copy in JSON's own types: methods of other objects would be open to the template."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise UsageError(
        "a chat is made of texts, numbers, lists and mappings", found=type(value).__name__
    )
