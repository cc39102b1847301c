"""The conditions of --fail-if: how they are written, and when they hold.

In: conditions and evaluations. Out: gates, a failure that names the figure, or a usage error.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import pytest

from crumb.errors import GateFailed, UsageError
from crumb.evaluation.report import (
    METRICS,
    PAIRED_METRICS,
    Divergence,
    Evaluation,
    FailCondition,
    Figure,
)

MOVED = Divergence(
    perplexity_ratio=Figure(1.25, 0.01),
    kl=Figure(0.05, 0.001),
    kl_median=0.02,
    kl_99=0.6,
    kl_99_9=0.9,
    kl_max=1.5,
    top1_agreement=Figure(0.875, 0.01),
    probability_rms=0.03,
)

EVALUATION = Evaluation(
    model="out",
    reference="model",
    text="wikitext2",
    text_sha256="0" * 64,
    protocol="gptq",
    window_tokens=2048,
    windows=10,
    scored_tokens=20470,
    file_bytes=10**9,
    bits_per_weight=3.25,
    executor="native",
    activations="f32",
    cache="f32",
    perplexity=Figure(12.5, 0.2),
    divergence=MOVED,
)

GOOD = [
    ("kl > 0.05", FailCondition("kl", ">", 0.05)),
    ("kl>.05", FailCondition("kl", ">", 0.05)),
    ("  perplexity  >=  12.5  ", FailCondition("perplexity", ">=", 12.5)),
    ("top1_agreement<0.9", FailCondition("top1_agreement", "<", 0.9)),
    ("top1_agreement <= 1", FailCondition("top1_agreement", "<=", 1.0)),
    ("perplexity_ratio > 1e-1", FailCondition("perplexity_ratio", ">", 0.1)),
    ("kl_99_9 > +2", FailCondition("kl_99_9", ">", 2.0)),
    ("probability_rms > -1", FailCondition("probability_rms", ">", -1.0)),
    ("bits_per_weight > 4", FailCondition("bits_per_weight", ">", 4.0)),
    ("perplexity > inf", FailCondition("perplexity", ">", math.inf)),
]

BAD = [
    "",
    " ",
    "kl",
    "kl >",
    "> 3",
    "kl 3",
    "kl = 3",
    "kl == 3",
    "kl => 3",
    "kl >> 3",
    "kl > 3 4",
    "kl > three",
    "kl > nan",
    "kl > 0.1,",
    "KL > 0.1",
    "ppl > 3",
    "kl-99 > 1",
    "kl > 3; perplexity > 3",
    "__class__ > 3",
    "kl >\n",
    "k" * 9000,
]


@pytest.mark.parametrize(("text", "gate"), GOOD)
def test_a_condition_is_a_metric_a_comparison_and_a_number(text: str, gate: FailCondition) -> None:
    assert FailCondition.parse(text) == gate


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:20])
def test_anything_else_is_refused_with_the_metrics_there_are(text: str) -> None:
    with pytest.raises(UsageError, match="not a condition") as caught:
        FailCondition.parse(text)
    line = str(caught.value)
    for metric in (*METRICS, *PAIRED_METRICS):
        assert metric in line
    assert "--fail-if" in line
    assert len(line) < 500


@pytest.mark.parametrize(
    ("condition", "fails"),
    [
        ("perplexity > 12.5", False),
        ("perplexity >= 12.5", True),
        ("perplexity < 12.5", False),
        ("perplexity <= 12.5", True),
        ("perplexity > 12.4", True),
        ("perplexity < 12.6", True),
        ("bits_per_weight > 3.2", True),
        ("perplexity_ratio > 1.2", True),
        ("kl > 0.04", True),
        ("kl > 0.06", False),
        ("kl_median > 0.01", True),
        ("kl_99 > 0.5", True),
        ("kl_99 > 0.7", False),
        ("kl_99_9 > 0.8", True),
        ("kl_max > 1.4", True),
        ("top1_agreement < 0.9", True),
        ("top1_agreement < 0.8", False),
        ("probability_rms > 0.02", True),
    ],
)
def test_a_gate_fails_exactly_where_its_condition_holds(condition: str, fails: bool) -> None:
    gate = FailCondition.parse(condition)
    if not fails:
        gate.check(EVALUATION)
        return
    with pytest.raises(GateFailed, match=f"out: {gate.metric} is ") as caught:
        gate.check(EVALUATION)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("comparison", [">", "<", ">=", "<="])
def test_a_figure_that_is_no_number_fails_every_gate(comparison: str) -> None:
    """No comparison with NaN holds, but a model that cannot be measured must not pass."""
    unmeasured = replace(EVALUATION, perplexity=Figure(math.nan, None))
    with pytest.raises(GateFailed, match="nan"):
        FailCondition("perplexity", comparison, 10.0).check(unmeasured)


def test_an_infinite_perplexity_fails_its_gate() -> None:
    with pytest.raises(GateFailed):
        FailCondition.parse("perplexity > 100").check(
            replace(EVALUATION, perplexity=Figure(math.inf, None))
        )


@pytest.mark.parametrize("metric", PAIRED_METRICS)
def test_a_metric_of_two_models_needs_a_reference(metric: str) -> None:
    gate = FailCondition(metric, ">", 0.0)
    with pytest.raises(UsageError, match="--reference"):
        gate.check_usable(with_reference=False)
    with pytest.raises(UsageError, match="compares two models"):
        gate.check(replace(EVALUATION, reference=None, divergence=None))
    gate.check_usable(with_reference=True)


def test_every_figure_of_a_divergence_has_a_gate() -> None:
    assert set(PAIRED_METRICS) == {field.name for field in fields(Divergence)}


def test_an_evaluation_is_a_record_of_plain_values() -> None:
    record = EVALUATION.as_dict()
    assert json.loads(json.dumps(record)) == record
    assert record["divergence"]["kl"] == {"value": 0.05, "standard_error": 0.001}
