"""The `crumb` command: registers the verbs, turns errors into one line and an exit code.

In: the process's arguments. Out: results on stdout, progress and errors on stderr.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys

import cyclopts

import crumb
from crumb.cli.commands import COMMANDS
from crumb.cli.output import log, warnings_as_lines
from crumb.cli.small_models import suggestion
from crumb.errors import CrumbError, DoesNotFit

app = cyclopts.App(
    name="crumb",
    help="Run the largest language model your memory can hold, and prove what the smaller "
    "size cost.",
    version=crumb.__version__,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for name, place, purpose in COMMANDS:
    app.command(f"crumb.cli.{place}", name=name, help=purpose)

INTERRUPTED = 130
USAGE = 2


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        with warnings_as_lines():
            app(words, exit_on_error=False, print_error=False)
        sys.stdout.flush()  # so that a reader who went away is noticed here
    except CrumbError as error:
        log(f"crumb: {error}")
        return error.exit_code
    except cyclopts.CycloptsError as error:
        log(f"crumb: {_usage_text(error)} See `crumb --help`.")
        return USAGE
    except KeyboardInterrupt as error:
        log("; ".join(["crumb: interrupted", *error.args]))
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return CrumbError.exit_code
    except OSError as error:
        what = f"{error.filename or 'the operating system refused'}: {error.strerror or error}"
        log(f"crumb: {' '.join(what.split())}")
        if error.filename is None:
            _drop_output()
        return CrumbError.exit_code
    except UnicodeError as error:
        log(f"crumb: a name that is not Unicode: {' '.join(str(error).split())}")
        return CrumbError.exit_code
    except MemoryError as error:
        log(f"crumb: the memory is too small: {error}")
        return DoesNotFit.exit_code
    return 0


def _usage_text(error: cyclopts.CycloptsError) -> str:
    """What is wrong with the command, as a sentence with one stop."""
    missing = error.argument if isinstance(error, cyclopts.MissingArgumentError) else None
    if missing is not None and missing.name == "MODEL":
        return suggestion(" ".join(error.command_chain or ()))
    said = " ".join(str(error).split())
    return said if said.endswith((".", "?", "!")) else f"{said}."


def _drop_output() -> None:
    """Send what is still held back for stdout nowhere, or Python fails on it once more at exit."""
    with contextlib.suppress(OSError):
        output = sys.stdout.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)


def run() -> None:
    """Entry point of the installed command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # ± and paths of any bytes on any terminal
            stream.reconfigure(errors="backslashreplace")
    sys.exit(main())
