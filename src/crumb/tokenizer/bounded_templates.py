"""Jinja2 templates of strangers, rendered in a sandbox with bounded time and memory.

In: a template's source, then plain values. Out: its text.
Loops and calls are counted, and so is every text that is put together: by `+`, `*`, `%`, `~`,
filters or output. Both are counted in the process itself: a worker process would cost a tenth of a
second before the first token, and limits of its memory are not kept on every system.
Refuses templates that take too many steps, and texts and numbers that grow too large.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.ext import Extension
from jinja2.filters import do_format
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from crumb.errors import UsageError

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


class BoundedEnvironment(ImmutableSandboxedEnvironment):
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


def _environment(context: Context) -> BoundedEnvironment:
    environment = context.environment
    assert isinstance(environment, BoundedEnvironment)
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
