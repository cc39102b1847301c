"""What the operating system's refusals to read mean to the user.

In: an OSError and the file it is about. Out: a typed error. A limit of the process is named as the
limit it is, never blamed on the file that met it. Refuses nothing of its own.
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crumb.errors import CheckpointError, CrumbError, DoesNotFit


@contextmanager
def read_errors(where: Path) -> Iterator[None]:
    """Turn an OSError into a typed error. Raises: CheckpointError, DoesNotFit."""
    try:
        yield
    except OSError as error:
        raise refusal(error, where) from error


def refusal(error: OSError, where: Path) -> CrumbError:
    """The typed error that an OSError becomes."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        of_system = error.errno == errno.ENFILE
        return DoesNotFit(
            f"{'the system' if of_system else 'this process'} may not open more files",
            expected="fewer open files" if of_system else f"at most {limit} open files",
            found=f"{limit} open, and {where.name} to be opened" if not of_system else None,
            do="Close models or files, or raise the limit with `ulimit -n`",
        )
    if error.errno == errno.ENOMEM:
        return DoesNotFit(
            "the system gives this process no memory to read a file into",
            where=where,
            do="Close models, or raise the limit of memory or of mappings (`ulimit -v`)",
        )
    return CheckpointError(error.strerror or "cannot be read", where=where)
