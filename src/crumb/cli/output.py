"""What every verb prints with: tables and JSON to stdout, progress and notes to stderr.

In: records. Out: text. Bars only on a terminal that knows escape codes; NO_COLOR is honoured.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from crumb.errors import CrumbWarning

Bar = Callable[[float, str], None]
"""Told the share done and what is being done."""

PIPE_WIDTH = 160
"""Columns of a table that is not shown on a terminal."""


def has_escape_codes() -> bool:
    """Whether stderr is a terminal that moves its cursor; TERM=dumb, as in an editor, does not."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def log_dim(line: str) -> None:
    """One line on stderr, dim on a terminal that may have colours."""
    coloured = has_escape_codes() and not os.environ.get("NO_COLOR")
    log(f"\x1b[2m{line}\x1b[0m" if coloured else line)


def log(line: str) -> None:
    """One line on stderr."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Show each CrumbWarning as one line on stderr, once."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, CrumbWarning):
                log(f"crumb: warning: {message}")
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        warnings.simplefilter("default", CrumbWarning)
        yield


def print_json(value: Any) -> None:
    """A record on stdout as indented JSON."""
    try:
        text = msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode()
    except UnicodeEncodeError:  # a path that is not UTF-8: its bytes as escapes
        text = json.dumps(msgspec.to_builtins(value, enc_hook=str), indent=2)
    print(text)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table on stdout; a column whose name starts with < is aligned to the left."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for name in columns:
        left = name.startswith("<")
        table.add_column(name.lstrip("<"), justify="left" if left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(width=width, highlight=False, markup=False)  # [code] is text
    console.print(table)


def bytes_text(count: float) -> str:
    """Bytes as people read them, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def duration_text(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Bar]:
    """A function of (share done, what is being done): a bar on a terminal, else rare lines."""
    if quiet:
        yield lambda share, doing: None
        return
    if not has_escape_codes():
        yield _line_reporter()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("remaining"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)

        def report(share: float, doing: str) -> None:
            bar.update(task, completed=share, description=f"{doing[-36:]:<36}")

        yield report


LINE_SECONDS = 10.0
"""Time between progress lines where there is no terminal."""


def _line_reporter() -> Bar:
    begin = last = time.monotonic()

    def report(share: float, doing: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_SECONDS and share > 0:
            last = now
            remaining = (now - begin) * (1 - share) / share
            log(f"{100 * share:3.0f} %  {doing}  about {duration_text(remaining)} remain")

    return report
