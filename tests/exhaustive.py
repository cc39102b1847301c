"""Which parameters of a test `make test` runs; the others are marked for `make oracle`.

In: the parameters of a test, and what each is made of. Out: the same for pytest's parametrize.
A parameter stays in `make test` if it brings something that no other there has. Every parameter
must have as many properties as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from itertools import combinations, product
from typing import Any

import pytest
from random_matrices import all_formats
from tiny_models import VARIANTS

from crumb.formats.catalog import Format, parse_format

Properties = Callable[[Any], tuple[Hashable, ...]]


def covering(values: Iterable[Any], properties: Properties, together: int = 1) -> list[Any]:
    """All values, marked exhaustive but for a few that have every property between them.

    together: how many properties must be met in one value. 1: each property once; 2: each two that
    any value has, and so on. Values of a tuple are a test's several arguments.
    """
    every = list(values)
    left = [set(combinations(enumerate(properties(value)), together)) for value in every]
    quick: set[int] = set()
    while any(left):
        best = max(range(len(every)), key=lambda place: len(left[place]))
        quick.add(best)
        brought = set(left[best])
        left = [those - brought for those in left]
    return [_parameter(value, place in quick) for place, value in enumerate(every)]


def exhaustive(*values: Any) -> list[Any]:
    """Marked values, one argument each; what stays in `make test` stands beside them."""
    return [_parameter(value, quick=False) for value in values]


def every(*columns: Iterable[Any], together: int = 1) -> list[Any]:
    """All combinations of some arguments of a test, marked but for those that cover them."""
    return covering(product(*columns), lambda values: values, together)


def _parameter(value: Any, quick: bool) -> Any:
    arguments = value if isinstance(value, tuple) else (value,)
    return pytest.param(*arguments, marks=() if quick else pytest.mark.exhaustive)


def format_properties(format: Format) -> tuple[Hashable, ...]:
    """Of a format: its row of the catalog, its zero kind, its group size."""
    return format.row.name, format.zero, format.group_size


def variant_properties(variant: str) -> tuple[Hashable, ...]:
    """Of a tiny model: its family, activation and kind of scaling, and whether its head is tied."""
    configuration = VARIANTS[variant]
    scaling = configuration.get("rope_scaling") or {}
    return (
        configuration["model_type"],
        configuration.get("hidden_act") or configuration.get("activation_function"),
        scaling.get("rope_type") or scaling.get("type"),
        configuration.get("tie_word_embeddings"),
    )


EACH_FORMAT = covering(
    [format.name for format in all_formats()], lambda name: format_properties(parse_format(name))
)
"""Names of all formats; `make test` runs each row of the catalog, zero kind and group size."""

EACH_FAMILY = covering(VARIANTS, variant_properties)
"""All tiny models; `make test` runs one of each family at least."""
