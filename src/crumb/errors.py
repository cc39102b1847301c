"""The one tree of errors. In: what went wrong. Out: one line that says what, where, and what to do.

What went on all the same, but should be known, is a CrumbWarning; the command line shows it.

CrumbError                    exit 1, HTTP 500
├── UsageError                exit 2, HTTP 400   a setting that cannot be
│   ├── ContextExceeded       exit 2, HTTP 400   a text longer than the model's context
│   ├── BodyTooLarge          exit 2, HTTP 413   a request of more bytes than a server reads
│   ├── KeyRefused            exit 2, HTTP 401   no key, or a wrong one
│   └── OriginRefused         exit 2, HTTP 403   a page or name that may not ask this server
├── GateFailed                exit 3, HTTP 422   a --fail-if condition came true
├── DoesNotFit                exit 3, HTTP 507   memory or disk is too small
├── ModelNotFound             exit 4, HTTP 404   no such model, or not permitted
├── CheckpointError           exit 1, HTTP 422   a file that is broken or not what it claims
│   └── UnknownFamily         exit 1, HTTP 422   a model_type without a file in architectures/
├── TextError                 exit 1, HTTP 422   a text that is missing, empty or too short
├── OutputConflict            exit 1, HTTP 409   the output directory belongs to another command
├── RequestCancelled          exit 1, HTTP 499   the request ended before it had a result
├── QueueFull                 exit 1, HTTP 503   as many requests wait as a model takes
│   └── ModelBusy             exit 1, HTTP 503   a model that is loading, or waits for memory
├── TimeExceeded              exit 1, HTTP 504   a request took longer than it may
└── SolveError                exit 1, HTTP 500   numbers that no solver can work with
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class CrumbError(Exception):
    """A failure the user can act on; its text is one line.

    Args: what failed, and by keyword where (file, tensor, offset), what was expected,
    what was found, and what to do about it.
    """

    exit_code = 1
    http_status = 500

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        do: str | None = None,
    ) -> None:
        self.what, self.where, self.expected, self.found, self.do = what, where, expected, found, do
        super().__init__(_line(what, where, expected, found, do))

    def at(self, where: object) -> CrumbError:
        """The same error, about this place."""
        return type(self)(
            self.what, where=where, expected=self.expected, found=self.found, do=self.do
        )


def _line(what: str, where: object, expected: object, found: object, do: str | None) -> str:
    line = what if where is None else f"{where}: {what}"
    facts = [
        f"{label} {fact}"
        for label, fact in (("expected", expected), ("found", found))
        if fact is not None
    ]
    if facts:
        line += f" ({', '.join(facts)})"
    if do:
        line += f". {do}"
    return " ".join(line.split())


class UsageError(CrumbError):
    """A setting that cannot be: out of range, or two that contradict each other."""

    exit_code = 2
    http_status = 400


class ContextExceeded(UsageError):
    """A text that is longer than the context of the model."""


class BodyTooLarge(UsageError):
    """A request of more bytes than a server reads."""

    http_status = 413


class KeyRefused(UsageError):
    """A request without a key, or with a wrong one, where a key is needed."""

    http_status = 401


class OriginRefused(UsageError):
    """A request from a page, or under a name, that a server does not answer."""

    http_status = 403


class GateFailed(CrumbError):
    """A condition given with --fail-if came true."""

    exit_code = 3
    http_status = 422


class DoesNotFit(CrumbError):
    """Memory or disk is too small for what was asked."""

    exit_code = 3
    http_status = 507


class ModelNotFound(CrumbError):
    """No model at that path or hub name, or no permission to read it."""

    exit_code = 4
    http_status = 404


class CheckpointError(CrumbError):
    """A file that is truncated, malformed, or not what it claims to be."""

    http_status = 422


class UnknownFamily(CheckpointError):
    """A configuration whose model_type has no file in architectures/."""


class TextError(CrumbError):
    """A text that is missing, empty, or shorter than one window."""

    http_status = 422


class OutputConflict(CrumbError):
    """The output directory holds the work of another command."""

    http_status = 409


class RequestCancelled(CrumbError):
    """A request that was cancelled, or whose model was closed, before it had a result."""

    http_status = 499


class QueueFull(CrumbError):
    """As many requests wait for a model as it takes; later there may be room."""

    http_status = 503


class ModelBusy(QueueFull):
    """A model that is still loading, or for which other models leave no memory now."""


class TimeExceeded(CrumbError):
    """A request that took longer than it may."""

    http_status = 504


class SolveError(CrumbError):
    """Weights or statistics that no solver can work with: NaN, infinity, overflow of fp16."""


class CrumbWarning(UserWarning):
    """What a user should know of a model or a text, though the work goes on."""


def warn(
    what: str,
    *,
    where: object = None,
    expected: object = None,
    found: object = None,
    do: str | None = None,
) -> None:
    """Tell a CrumbWarning in the words of an error, by Python's own `warnings`."""
    warnings.warn(_line(what, where, expected, found, do), CrumbWarning, stacklevel=2)


@contextmanager
def placed(where: object) -> Iterator[None]:
    """Give an error that is raised inside this place, unless it has one already."""
    try:
        yield
    except CrumbError as error:
        if error.where is not None:
            raise
        raise error.at(where) from error
