"""The `crumb` command and `python -m crumb`.

In: the process as it was started. Out: its exit code. Streams that whoever started it had closed
are made anew first, and Ctrl-C is one line even while Python still loads the rest.
"""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130


def open_streams() -> None:
    """Let stdin, stdout and stderr lead nowhere where they are closed.

    No file that is opened later then has their numbers, and what is printed is lost, not an error.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def run() -> None:
    """Entry point of the installed command."""
    try:
        open_streams()
        from crumb.cli.main import run as run_command

        run_command()
    except KeyboardInterrupt:
        print("crumb: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    run()
