"""What every verb prints with: tables and JSON to stdout, progress and notes to stderr.

In: records. Out: text. Bars only on a terminal that knows escape codes; NO_COLOR is honoured.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from crumb.errors import CrumbWarning
from crumb.progress import Cost, Progress, ProgressListener

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


def log_cost(cost: Cost) -> None:
    """What long work takes, on stderr, before it begins."""
    line = f"needs about {bytes_text(cost.memory_bytes)} of memory, {duration_text(cost.seconds)}"
    if cost.working_bytes:
        line += f", and {bytes_text(cost.working_bytes)} on disk"
        line += f", of which {bytes_text(cost.output_bytes)} stay"
    log(line)


@contextmanager
def progress_bar() -> Iterator[ProgressListener]:
    """What listens to long work: a bar on a terminal, else rare lines."""
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
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)

        def report(progress: Progress) -> None:
            bar.update(task, completed=progress.share, description=f"{progress.doing[-36:]:<36}")

        yield report


LINE_SECONDS = 10.0
"""Time between progress lines where there is no terminal."""


def _line_reporter() -> ProgressListener:
    last = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_SECONDS and progress.seconds_left is not None:
            last = now
            left = duration_text(progress.seconds_left)
            log(f"{100 * progress.share:3.0f} %  {progress.doing}  about {left} remain")

    return report
