"""What is asked of an evaluation. In: a model, a reference, how the text is cut. Out: one record.

EvaluateOptions are its fields as keywords. Refuses counts that are none; names are refused where
they are looked up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from crumb.errors import UsageError
from crumb.requests.keywords import check_known
from crumb.requests.number import as_integer


@dataclass(frozen=True)
class EvaluateRequest:
    """Which models to measure, on what."""

    model: str
    reference: str | None = None  # the float model to compare with, token by token
    text: str = "wikitext2"
    protocol: str = "gptq"  # or llama.cpp
    window_tokens: int | None = None  # None: as the protocol says
    limit_windows: int | None = None  # None: all of the text
    activations: str = "f32"  # f32 measures the weights, int8 what running them costs
    executor: str = "native"  # or array, the oracle

    def __post_init__(self) -> None:
        for name in ("window_tokens", "limit_windows"):
            value = getattr(self, name)
            count = as_integer(value)
            if value is not None and (count is None or count < 1):
                raise UsageError(
                    "a count out of range", where=name, expected="1 or more", found=repr(value)[:40]
                )
            object.__setattr__(self, name, count)


class EvaluateOptions(TypedDict, total=False):
    """The fields of EvaluateRequest as keywords, but for the models."""

    text: str
    protocol: str
    window_tokens: int | None
    limit_windows: int | None
    activations: str
    executor: str


def make_evaluate_request(
    model: str | Path, reference: str | Path | None = None, **options: Unpack[EvaluateOptions]
) -> EvaluateRequest:
    """A request from keywords. Raises: UsageError."""
    check_known(options, "an evaluation", EvaluateRequest)
    against = None if reference is None else str(reference)
    return EvaluateRequest(str(model), against, **options)
