"""Writes the pages that repeat what the code says: formats.md, families.md and cli.md.

In: the catalog through `crumb formats`, the family files, the command line's own parameters.
Out: the pages beside this file. `make docs` runs it; tests/house/test_docs.py compares.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from docstring_parser import parse

ROOT = Path(__file__).resolve().parents[1]
BY_HAND = "<!-- By hand from here on. -->\n"
NOTE = "<!-- Written by `make docs` from {source}; edit that, not this page. -->\n"


def formats_page() -> str:
    """What `crumb formats` prints, at a fixed width."""
    lines = (line.rstrip() for line in _output_of("formats").splitlines())
    shown = "\n".join(lines).strip("\n")
    return (
        NOTE.format(source="`crumb formats`")
        + "# Formats\nOne row of `src/crumb/formats/catalog.py` is one format.\n"
        + "`docs/names.md` explains the words, `docs/adding.md` how to add one.\n\n"
        + f"```text\n{shown}\n```\n"
    )


def _output_of(verb: str) -> str:
    """What a verb prints when its output is no terminal."""
    command = [sys.executable, "-c", "from crumb.cli.main import run; run()", verb]
    plain = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(command, check=True, env=plain, stdout=subprocess.PIPE, text=True).stdout


def families_page() -> str:
    """One row for each family file, in alphabetical order, and what is written by hand behind."""
    from crumb.cli.families import NOTE as ABOUT
    from crumb.cli.families import family_rows

    rows = [
        tuple(map(str, {**row, "model_type": f"`{row['model_type']}`"}.values()))
        for row in family_rows()
    ]
    return (
        NOTE.format(source="the files of `src/crumb/architectures`")
        + "# Families\nA model runs when the `model_type` of its config.json is listed here. "
        + "`crumb families` prints this table.\n\n"
        + _table(tuple(family_rows()[0]), rows)
        + f"\n{ABOUT}\n\n{BY_HAND}"
        + (ROOT / "docs/families.md").read_text().partition(BY_HAND)[2]
    )


def cli_page() -> str:
    """Each verb with its usage, its text and its parameters."""
    from crumb.cli.main import app

    parts = [_verb(name, verb) for name, verb in _verbs(app)]
    return NOTE.format(source="`src/crumb/cli`") + "# The command line\n\n" + "\n".join(parts)


def _verbs(app: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every verb with its name; one that only leads to others is those."""
    for name in app:
        if name.startswith("-"):
            continue
        if app[name].default_command is None:
            yield from _verbs(app[name], f"{before}{name} ")
        else:
            yield f"{before}{name}", app[name]


def _verb(name: str, verb: Any) -> str:
    text = parse(inspect.cleandoc(verb.help or ""))
    collection = verb.assemble_argument_collection(parse_docstring=True)
    arguments = [argument for argument in collection if not argument.children]
    usage = ["crumb", name, *filter(None, map(_usage, arguments))]
    groups: dict[str, list[Any]] = {}
    for argument in sorted(arguments, key=_place):
        groups.setdefault(_group(argument).name, []).append(_row(argument))
    blocks = [
        f"## {name}",
        f"```text\n{' '.join(usage)}\n```",
        text.short_description or "",
        text.long_description or "",
        *(_table((name.lower(), *COLUMNS), rows) for name, rows in groups.items()),
    ]
    return "\n".join(f"{block.strip()}\n" for block in blocks if block)


COLUMNS = ("value", "default", "meaning")


def _group(argument: Any) -> Any:
    """The group that --help shows a parameter in."""
    return argument.parameter.group[-1]


def _place(argument: Any) -> int:
    """Where --help shows the group of a parameter: those without a number first."""
    key = _group(argument).sort_key
    return key if isinstance(key, int) else 0


def _usage(argument: Any) -> str:
    """A required parameter as it is typed; the others are in the table."""
    if not argument.required:
        return ""
    name = str(argument.names[0])
    return f"{name} {_value(argument)}" if name.startswith("-") else name


def _row(argument: Any) -> tuple[str, str, str, str]:
    default = argument.field_info.default
    needed = argument.required or default is inspect.Parameter.empty
    default = default.value if isinstance(default, Enum) else default
    unset = default is None or default is False or default == ()
    shown = "required" if needed else "" if unset else f"`{default}`"
    names = ", ".join(f"`{name}`" for name in argument.names)
    meaning = " ".join((argument.parameter.help or "").split())
    return names, _value(argument).replace("|", "\\|"), shown, meaning


def _value(argument: Any) -> str:
    """What may follow a parameter: its choices, or its type in capitals, or nothing for a flag."""
    choices = argument.get_choices()
    if choices:
        return "|".join(str(choice) for choice in choices)
    return "" if argument.hint is bool else _type_name(argument.hint).upper()


def _type_name(hint: Any) -> str:
    """The name of a type; of what an optional or a sequence holds."""
    held = [part for part in get_args(hint) if part not in (NoneType, ...)]
    several = " ..." if get_origin(hint) in (list, tuple) else ""
    return _type_name(held[0]) + several if held else str(hint.__name__)


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


PAGES: dict[str, Callable[[], str]] = {
    "docs/formats.md": formats_page,
    "docs/families.md": families_page,
    "docs/cli.md": cli_page,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (ROOT / name).write_text(page())
        print(f"wrote {name}")
