"""The `crumb` command: registers the verbs, turns errors into one line and an exit code.

In: the process's arguments. Out: results on stdout, progress and errors on stderr.
"""

from __future__ import annotations

import os
import sys

import cyclopts

import crumb
from crumb.cli.demo import demo
from crumb.cli.eval import evaluate
from crumb.cli.formats import formats
from crumb.cli.output import log
from crumb.cli.quantize import quantize
from crumb.cli.show import show
from crumb.errors import CrumbError

app = cyclopts.App(
    name="crumb",
    help="Run the largest language model your memory can hold, and prove what the smaller "
    "size cost.",
    version=crumb.__version__,
    help_format="plaintext",
    result_action="return_value",
)
app.command(quantize, name="quantize")
app.command(evaluate, name="eval")
app.command(show, name="show")
app.command(formats, name="formats")
app.command(demo, name="demo")

INTERRUPTED = 130
USAGE = 2


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        app(given, exit_on_error=False, print_error=False)
    except CrumbError as error:
        log(f"crumb: {error}")
        return error.exit_code
    except cyclopts.CycloptsError as error:
        log(f"crumb: {' '.join(str(error).split())} See `crumb --help`.")
        return USAGE
    except KeyboardInterrupt:
        log("crumb: interrupted; the same command continues where it stopped")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def run() -> None:
    """Entry point of the installed command."""
    sys.exit(main())
