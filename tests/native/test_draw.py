"""A token is drawn as by sorting all scores, on every instruction set.

In: random scores, tied ones, such as a form forbids; filters alone and together. Out: the place
that the reference draws, which is never one that has no weight.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from crumb.kernels.dispatch import supported_sets
from crumb.kernels.draw import draw, draw_reference

Scores = NDArray[np.float32]

FILTERS = [
    (temperature, top_k, top_p, min_p)
    for temperature, top_k, top_p, min_p in product(
        (0.05, 0.8, 1.0, 30.0), (0, 1, 5, 40, 10_000), (1.0, 0.95, 0.5, 1e-9), (0.0, 0.05, 1.0)
    )
]
UNIFORMS = (0.0, 0.3, 0.77, 1 - 2.0**-53)


def scores_of(kind: str, count: int) -> Scores:
    """Scores as a model gives them, or with a difficulty."""
    generator = np.random.default_rng(count)
    scores = (3 * generator.standard_normal(count)).astype(np.float32)
    if kind == "tied":
        scores = np.round(scores / 2).astype(np.float32)
    if kind == "far":
        scores *= 40
    if kind == "forbidden":
        scores[generator.random(count) < 0.7] = -np.inf
        scores[count // 2] = 1.0
    return scores


@pytest.mark.parametrize("isa", supported_sets())
@pytest.mark.parametrize("kind", ["plain", "tied", "far", "forbidden"])
def test_a_draw_is_that_of_sorting_all_scores(
    kind: str, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRUMB_ISA", isa)
    for count in (1, 15, 64, 1003):
        scores = scores_of(kind, count)
        for filters, uniform in product(FILTERS, UNIFORMS):
            place = draw(scores, *filters, uniform)
            assert np.isfinite(scores[place])
            assert place == draw_reference(scores, *filters, uniform), (count, filters, uniform)


def test_no_uniform_number_draws_a_forbidden_token() -> None:
    scores = np.full(4096, -np.inf, np.float32)
    scores[[3000, 3001]] = 0.0
    drawn = {draw(scores, 1.0, 0, 1.0, 0.0, number) for number in (0.0, 0.49, 0.51, 1 - 2.0**-53)}
    assert drawn == {3000, 3001}


def test_a_tiny_temperature_draws_the_best() -> None:
    scores = np.asarray([1.0, 1.0000001, 0.5], np.float32)
    assert draw(scores, 5e-324, 0, 1.0, 0.0, 0.999) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        (0.0, 0, 1.0, 0.0, 0.5),
        (1.0, -1, 1.0, 0.0, 0.5),
        (1.0, 0, -0.1, 0.0, 0.5),
        (1.0, 0, 1.0, 2.0, 0.5),
        (1.0, 0, 1.0, 0.0, 1.0),
        (float("nan"), 0, 1.0, 0.0, 0.5),
    ],
)
def test_numbers_that_no_sampling_has_are_refused(
    wrong: tuple[float, int, float, float, float],
) -> None:
    with pytest.raises(ValueError, match="out of range"):
        draw(np.zeros(4, np.float32), *wrong)
