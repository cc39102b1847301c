"""The allocation of formats is the best there is: held to trying all of them."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumb.errors import DoesNotFit
from crumb.solve.allocate import Allocation, Menu, Offer, allocate, swaps

OFFERS = st.lists(
    st.builds(
        Offer,
        st.sampled_from("abcd"),
        st.integers(0, 40),
        st.floats(0, 10, allow_subnormal=False) | st.integers(0, 5).map(float),
    ),
    min_size=1,
    max_size=4,
)
MENUS = st.lists(OFFERS, min_size=1, max_size=5).map(
    lambda menus: [Menu(str(index), tuple(offers)) for index, offers in enumerate(menus)]
)


def least_loss(menus, budget):
    """By trying all; None where nothing fits."""
    every = map(Allocation, itertools.product(*(menu.offers for menu in menus)))
    return min((each.loss for each in every if each.size_bytes <= budget), default=None)


@settings(max_examples=400, deadline=None)
@given(MENUS, st.integers(0, 160))
def test_no_choice_within_the_budget_has_less_loss(menus, budget):
    least = least_loss(menus, budget)
    if least is None:
        with pytest.raises(DoesNotFit, match="at least"):
            allocate(menus, budget)
        return
    found = allocate(menus, budget)
    assert found.size_bytes <= budget
    assert all(offer in menu.offers for menu, offer in zip(menus, found.offers, strict=True))
    assert found.loss == pytest.approx(least, rel=1e-9, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(MENUS, st.integers(0, 160), st.integers(0, 4))
def test_swaps_fit_and_touch_each_menu_once(menus, budget, count):
    if least_loss(menus, budget) is None:
        return
    allocation = allocate(menus, budget)
    touched = []
    proposals = swaps(menus, allocation, budget - allocation.size_bytes, count)
    assert len(proposals) <= count
    for swap in proposals:
        after = swap.of(allocation)
        assert after.size_bytes <= budget
        assert after.loss >= allocation.loss - 1e-9
        assert swap.up_offer.size_bytes > allocation.offers[swap.up].size_bytes
        assert swap.down_offer.size_bytes < allocation.offers[swap.down].size_bytes
        assert swap.up_offer in menus[swap.up].offers
        assert swap.down_offer in menus[swap.down].offers
        touched += [swap.up, swap.down]
    assert len(set(touched)) == len(touched)


def test_the_swap_that_moves_most_loss_at_least_cost_comes_first():
    def menu(name, *losses):
        return Menu(name, tuple(Offer(f"{size}", size, loss) for size, loss in enumerate(losses)))

    menus = [menu("even", 9, 5, 1.1), menu("odd", 9, 5, 1), menu("flat", 0.2, 0.1, 0)]
    allocation = allocate(menus, 3)
    assert [offer.name for offer in allocation.offers] == ["1", "2", "0"]
    (first, *_) = swaps(menus, allocation, 0, 4)
    assert (first.up, first.down) == (0, 1)


def layers(count, seed=0):
    """Menus like those of a model's matrices: few shapes, a loss that falls fourfold with a bit."""
    rng = np.random.default_rng(seed)
    menus = []
    for index in range(count):
        weights = (1 << 16) * (1, 1, 4, 12)[index % 4]
        sensitivity = rng.lognormal(0, 1.5) * weights
        offers = [
            Offer(
                f"{bits}", int(weights * bits / 8), sensitivity * 4.0**-bits * rng.uniform(0.9, 1.1)
            )
            for bits in (2.125, 2.25, 2.5, 3.125, 3.25, 3.5, 4.125, 4.25, 4.5, 6.125, 8.125)
        ]
        menus.append(Menu(str(index), tuple(offers)))
    return menus


def bytes_between(menus, share):
    """A budget between the smallest and the largest."""
    ends = [
        sum(choose(each.size_bytes for each in menu.offers) for menu in menus)
        for choose in (min, max)
    ]
    return int(ends[0] + share * (ends[1] - ends[0]))


def test_more_bytes_never_lose_more_over_twenty_budgets():
    menus = layers(60)
    budgets = [bytes_between(menus, share) for share in np.linspace(0, 1, 20)]
    losses = [allocate(menus, budget).loss for budget in budgets]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]


def test_a_large_model_takes_seconds():
    menus = layers(640)
    begin = time.process_time()
    for share in (0.1, 0.3, 0.7):
        budget = bytes_between(menus, share)
        assert 0 <= budget - allocate(menus, budget).size_bytes < 1 << 16
    assert time.process_time() - begin < 10


def test_a_budget_for_everything_gives_everything():
    menus = layers(8)
    assert {offer.name for offer in allocate(menus, 1 << 40).offers} == {"8.125"}


def test_the_least_budget_gives_the_smallest():
    menus = layers(8)
    assert {offer.name for offer in allocate(menus, bytes_between(menus, 0)).offers} == {"2.125"}
