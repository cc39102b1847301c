"""A chat as the text a model was trained to read, written by the template in its directory.

In: a model directory (chat_template.jinja, or chat_template in tokenizer_config.json), then
messages. Out: a text to be encoded with special=False: the template writes the special tokens.
Templates are programs of strangers: they run in jinja2's sandbox, and their steps, output and the
usual ways to grow are counted. A message may contain special tokens; they mean what they say.
Refuses directories without a template, templates that fail or do not end, content that is no JSON.
Source: what a template may expect is defined by transformers' apply_chat_template.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.ext import Extension
from jinja2.filters import do_format
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from crumb.errors import CheckpointError, CrumbError, UsageError
from crumb.files.model_files import ModelFiles, optional_json

FILE = "chat_template.jinja"
DEFAULT, WITH_TOOLS = "default", "tool_use"
"""Names in a list of templates: for chats, and for chats with tools where there is one."""

MOST_STEPS = 2_000_000
"""Turns of loops in one rendering, a second or less; 1000 messages take some thousand."""

CALL_STEPS = 10
"""A call counts as so many turns, because it takes as long."""

MOST_CHARACTERS = 16_000_000
"""Of a template's output and of any text it puts together: some four million tokens."""

MOST_COPIED_CHARACTERS = 1_000_000_000
"""Copied in all while texts are put together; takes about a second."""

LARGEST_INTEGER_BITS = 4096
WIDE = re.compile(r"%[^%a-zA-Z]*(\*|\d{4})")
LARGEST_ARGUMENT = 100_000
"""A number given to a function, so that `"x".ljust(n)` stays small; jinja2's bound for range()."""

COUNTED, JOINED = "counted by crumb", "joined by crumb"
"""Names of filters that no template can write."""

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
        self._environment = _Environment()
        self._templates = {name: self._compile(source) for name, source in templates.items()}
        self._turn = threading.Lock()

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
        given = {
            "messages": [_as_mapping(message) for message in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        template = self._template(tools is not None)
        try:
            context = {**self._tokens, **_plain(variables or {}), **_plain(given)}
            with self._turn:
                return self._environment.run(template, context)
        except CrumbError:
            raise
        except Exception as error:  # a template's mistakes are any of Python's
            raise self._failure("the chat template fails", error) from error

    def _template(self, has_tools: bool) -> Template:
        names = (WITH_TOOLS, DEFAULT) if has_tools else (DEFAULT,)
        for name in names:
            if name in self._templates:
                return self._templates[name]
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
    known = {name: text for name, text in tokens.items() if text is not None}
    return ChatTemplate(_named(templates, where), known, where)


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


def _as_mapping(message: Message | Mapping[str, Any]) -> Mapping[str, Any]:
    """A message as a template reads it; clients send null for what is not there."""
    if isinstance(message, Message):
        return {"role": message.role, "content": message.content}
    if not isinstance(message, Mapping):
        raise UsageError("a message has a role and content", found=type(message).__name__)
    return {name: value for name, value in message.items() if value is not None}


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


class _Environment(ImmutableSandboxedEnvironment):
    """jinja2 with what templates expect, and with counters; one rendering at a time."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            finalize=_counted_output,
        )
        self.filters |= {"tojson": _to_json}
        self.filters = {name: _checked(run) for name, run in self.filters.items()}
        self.filters |= {COUNTED: _counted_loop, JOINED: _joined}
        self.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        del self.globals["lipsum"]
        self._steps = self._copied = 0

    def bounded(self, source: str) -> Template:
        """A template whose loops and joins are counted."""
        tree = self.parse(source)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, COUNTED, [], [], None, None)
        for fields, owner in [(node.iter_fields(), node) for node in tree.find_all(nodes.Node)]:
            for name, value in list(fields):
                setattr(owner, name, _without_concat(value))
        tree.set_environment(self)
        return Template.from_code(self, self.compile(tree), self.make_globals(None))

    def run(self, template: Template, context: Mapping[str, Any]) -> str:
        """The whole output, from its pieces."""
        self._steps = self._copied = 0
        pieces, characters = [], 0
        for piece in template.generate(context):
            characters += len(piece)
            if characters > MOST_CHARACTERS:
                raise TemplateError(f"it writes more than {MOST_CHARACTERS} characters")
            pieces.append(piece)
        return "".join(pieces)

    def step(self, steps: int = 1) -> None:
        """Count turns of a loop."""
        self._steps += steps
        if self._steps > MOST_STEPS:
            raise TemplateError(f"it takes more than {MOST_STEPS} steps")

    def grow(self, length: int) -> None:
        """Count a text or list that is put together."""
        self._copied += length
        if length > MOST_CHARACTERS or self._copied > MOST_COPIED_CHARACTERS:
            raise TemplateError(f"it puts together more than {MOST_CHARACTERS} characters")

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        __self.step(CALL_STEPS)
        _check_arguments(args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length()
            if bits + right.bit_length() > LARGEST_INTEGER_BITS:
                raise TemplateError("it computes a number too large")
        elif operator == "%" and isinstance(left, str):
            _check_width(left)
        elif operator == "*" and (isinstance(left, int) or isinstance(right, int)):
            times, value = (left, right) if isinstance(left, int) else (right, left)
            self.grow(times * len(value) if hasattr(value, "__len__") else 0)
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            self.grow(len(left) + len(right))
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """{% generation %} marks what training learns from; here its content is simply written."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _without_concat(value: Any) -> Any:
    """`a ~ b` as a filter over [a, b]."""
    if isinstance(value, list):
        return [_without_concat(item) for item in value]
    if isinstance(value, nodes.Concat):
        return nodes.Filter(nodes.List(value.nodes), JOINED, [], [], None, None)
    return value


def _environment(context: Context) -> _Environment:
    environment = context.environment
    assert isinstance(environment, _Environment)
    return environment


def _check_arguments(args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse large numbers: widths, counts and indents are what texts grow by."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > LARGEST_ARGUMENT:
            raise TemplateError(f"it calls a function with {str(value)[:40]}")


def _check_width(form: str) -> None:
    """Refuse a format that asks for more places than a number has."""
    if WIDE.search(form):
        raise TemplateError(f"it formats a number wider than 999 places: {form[:40]}")


def _checked(run: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments, but not the value it is given, are looked at."""
    first = 2 if hasattr(run, "jinja_pass_arg") else 1  # jinja2 gives those the context before it

    @wraps(run)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_arguments(args[first:], kwargs)
        if run is do_format:
            _check_width(str(args[0]))
        return run(*args, **kwargs)

    return checked


@pass_context
def _counted_loop(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _environment(context).step()
        yield value


@pass_context
def _joined(context: Context, values: Sequence[Any]) -> str:
    texts = [str(value) for value in values]
    _environment(context).grow(sum(map(len, texts)))
    return "".join(texts)


@pass_context
def _counted_output(context: Context, value: Any) -> Any:
    if isinstance(value, str):
        _environment(context).grow(len(value))
    return value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja2's escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: object) -> None:
    raise UsageError(f"the chat template refuses this chat: {str(message)[:400]}")


def _now(form: str) -> str:
    return datetime.now().strftime(form)
