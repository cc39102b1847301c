"""The `crumb` command and `python -m crumb`, interruptible while Python still loads the rest."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def run() -> None:
    """Entry point of the installed command."""
    try:
        from crumb.cli.main import run as run_command

        run_command()
    except KeyboardInterrupt:
        print("crumb: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    run()
