"""Scores to figures: perplexity, divergence and agreement, each with its standard error.

In: TokenScores and the windows they belong to. Out: an Evaluation, and the gate of --fail-if.
Standard errors come from the spread between windows, since tokens of one window are not
independent; ratios and differences are paired, token by token. Refuses metrics that do not exist.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.errors import GateFailed, UsageError
from crumb.evaluation.scores import TokenScores

LARGEST_EXPONENT = 709.0
"""exp of more than this is beyond f64."""


@dataclass(frozen=True)
class Figure:
    """A mean over tokens and its standard error (None with fewer than two windows)."""

    value: float
    standard_error: float | None


@dataclass(frozen=True)
class Divergence:
    """How far a model's predictions lie from the reference's, on the same tokens."""

    perplexity_ratio: Figure
    kl: Figure  # nats, mean over tokens
    kl_median: float
    kl_99: float
    kl_99_9: float
    kl_max: float
    top1_agreement: Figure  # share of tokens with the same most likely token
    probability_rms: float  # RMS change of the true token's probability


@dataclass(frozen=True)
class PackBound:
    """How sure a KL is that was measured on a pack, in nats."""

    standard_error: float  # of the drawn tokens, beside that of the text
    lower_bound: float  # the whole tail taken as one token: the KL is never below


@dataclass(frozen=True)
class Evaluation:
    """One model on one text under one protocol."""

    model: str
    reference: str | None
    text: str
    text_sha256: str
    protocol: str
    window_tokens: int
    windows: int
    scored_tokens: int
    file_bytes: int
    bits_per_weight: float  # of the weight files, over all parameters
    executor: str  # native or array
    activations: str  # what quantized matrices were multiplied with: f32 or int8
    cache: str  # how keys and values were kept: f32 or f16
    perplexity: Figure
    divergence: Divergence | None
    pack: PackBound | None = None  # where the reference was a pack
    bits_per_byte: float | None = None  # of the scored text; None of a model without a tokenizer

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def mean_figure(values: NDArray[Any]) -> Figure:
    """Mean of (windows, scored) values; the error from the spread between window means."""
    means = values.mean(axis=1, dtype=np.float64)
    error = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
    return Figure(float(means.mean()), error)


def exponential(figure: Figure) -> Figure:
    """exp of a mean, its error carried along (first order); infinite beyond f64."""
    value = math.exp(figure.value) if figure.value < LARGEST_EXPONENT else math.inf
    error = None if figure.standard_error is None else value * figure.standard_error
    return Figure(value, error)


def perplexity(scores: TokenScores) -> Figure:
    """exp of the mean loss."""
    return exponential(mean_figure(scores.loss))


def divergence(scores: TokenScores, reference: TokenScores) -> Divergence:
    """Paired figures of a model against its reference."""
    assert scores.divergence is not None, "scored with a reference"
    assert scores.agrees is not None, "scored with a reference"
    assert scores.probability_change is not None, "scored with a reference"
    median, high, higher = np.quantile(scores.divergence, [0.5, 0.99, 0.999])
    return Divergence(
        perplexity_ratio=exponential(mean_figure(scores.loss - reference.loss)),
        kl=mean_figure(scores.divergence),
        kl_median=float(median),
        kl_99=float(high),
        kl_99_9=float(higher),
        kl_max=float(scores.divergence.max()),
        top1_agreement=mean_figure(scores.agrees),
        probability_rms=float(np.sqrt(np.mean(np.square(scores.probability_change)))),
    )


COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}

METRICS: dict[str, Callable[[Evaluation], float]] = {
    "perplexity": lambda evaluation: evaluation.perplexity.value,
    "bits_per_weight": lambda evaluation: evaluation.bits_per_weight,
}
"""What --fail-if can name of any evaluation."""

PAIRED_METRICS: dict[str, Callable[[Divergence], float]] = {
    "perplexity_ratio": lambda divergence: divergence.perplexity_ratio.value,
    "kl": lambda divergence: divergence.kl.value,
    "kl_median": lambda divergence: divergence.kl_median,
    "kl_99": lambda divergence: divergence.kl_99,
    "kl_99_9": lambda divergence: divergence.kl_99_9,
    "kl_max": lambda divergence: divergence.kl_max,
    "top1_agreement": lambda divergence: divergence.top1_agreement.value,
    "probability_rms": lambda divergence: divergence.probability_rms,
}
"""What --fail-if can name where there is a reference."""


@dataclass(frozen=True)
class FailCondition:
    """A condition that must not come true."""

    metric: str
    comparison: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> FailCondition:
        """A gate from "metric op number". Raises: UsageError."""
        match = re.fullmatch(r"\s*(\w+)\s*(>=|<=|>|<)\s*(\S+)\s*", text)
        metric, comparison, number = match.groups() if match else ("", "", "")
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if metric not in {*METRICS, *PAIRED_METRICS} or math.isnan(limit):
            raise UsageError(
                "not a condition",
                where="--fail-if",
                expected="METRIC > NUMBER (or <, >=, <=), with a metric of "
                + ", ".join([*METRICS, *PAIRED_METRICS]),
                found=repr(text[:80]),
            )
        return cls(metric, comparison, limit)

    def check_usable(self, with_reference: bool) -> None:
        """Raises: UsageError for a metric that compares two models where there is only one."""
        if self.metric in PAIRED_METRICS and not with_reference:
            raise UsageError(
                f"{self.metric} compares two models",
                where="--fail-if",
                do="Give the float model with --reference",
            )

    def check(self, evaluation: Evaluation) -> None:
        """Raises: GateFailed if the condition holds or cannot be told, UsageError if it needs a
        reference."""
        self.check_usable(evaluation.divergence is not None)
        if self.metric in METRICS or evaluation.divergence is None:
            value = METRICS[self.metric](evaluation)
        else:
            value = PAIRED_METRICS[self.metric](evaluation.divergence)
        if math.isnan(value) or COMPARISONS[self.comparison](value, self.limit):
            raise GateFailed(
                f"{self.metric} is {value:.6g}; --fail-if says that {self.comparison} "
                f"{self.limit:g} fails",
                where=evaluation.model,
            )
