"""Which format each matrix gets within a budget of bytes: the multiple-choice knapsack, exactly.

In: a menu for each matrix, with the bytes and the loss of every format it may have; a budget. Out:
the Allocation of least total loss, so that more bytes never cost more. Refuses a budget below the
smallest formats. Method: Sinha and Zoltners 1979 for the relaxation, Pisinger 1995 for the core:
what the relaxation rules out goes, and what is left is decided by dynamic programming with bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crumb.errors import DoesNotFit

Integers = NDArray[np.int64]
Doubles = NDArray[np.float64]

DOUBT = 0.3
"""Share of a loss by which it may be wrong."""

NEIGHBOURS = 2
"""Larger and smaller offers of a menu that a swap may take."""

SLACK = 1e-12
"""Share of the loss by which sums in another order may differ."""


@dataclass(frozen=True)
class Offer:
    """One format of a matrix."""

    name: str
    size_bytes: int
    loss: float


@dataclass(frozen=True)
class Menu:
    """What a matrix may have."""

    name: str
    offers: tuple[Offer, ...]


@dataclass(frozen=True)
class Allocation:
    """One offer of every menu."""

    offers: tuple[Offer, ...]

    @property
    def size_bytes(self) -> int:
        return sum(each.size_bytes for each in self.offers)

    @property
    def loss(self) -> float:
        return float(sum(each.loss for each in self.offers))


@dataclass(frozen=True)
class _Step:
    """From an offer on the lower convex hull of a menu to the next."""

    menu: int
    offer: Offer
    more_bytes: int
    less_loss: float

    @property
    def worth(self) -> float:
        """Loss that a byte takes away."""
        return self.less_loss / self.more_bytes


@dataclass(frozen=True)
class Swap:
    """Two menus take other offers: one of more bytes and less loss, one of fewer and more."""

    up: int
    up_offer: Offer
    down: int
    down_offer: Offer

    def of(self, allocation: Allocation) -> Allocation:
        """The allocation after it."""
        offers = list(allocation.offers)
        offers[self.up], offers[self.down] = self.up_offer, self.down_offer
        return Allocation(tuple(offers))


def swaps(
    menus: Sequence[Menu], allocation: Allocation, spare_bytes: int, count: int
) -> list[Swap]:
    """The swaps that losses in doubt speak for most, within what is to spare; a menu is in one.

    By its losses no swap gains. If each is wrong by up to DOUBT, one gains at most that share of
    all loss that it moves, less what it costs: the largest of these come first.
    """
    ups, downs = [], []
    for index, (menu, offer) in enumerate(zip(menus, allocation.offers, strict=True)):
        useful = _useful(menu.offers)
        larger = [each for each in useful if each.size_bytes > offer.size_bytes]
        smaller = [each for each in useful if each.size_bytes < offer.size_bytes]
        ups += [(index, each) for each in larger[:NEIGHBOURS]]
        downs += [(index, each) for each in smaller[-NEIGHBOURS:]]

    def change(moves: list[tuple[int, Offer]]) -> tuple[Integers, Doubles, Integers]:
        before = [allocation.offers[index] for index, _ in moves]
        pairs = list(zip(moves, before, strict=True))
        return (
            np.array([each.size_bytes - old.size_bytes for (_, each), old in pairs], np.int64),
            np.array([each.loss - old.loss for (_, each), old in pairs], np.float64),
            np.array([index for index, _ in moves], np.int64),
        )

    up_bytes, up_loss, up_menu = change(ups)
    down_bytes, down_loss, down_menu = change(downs)
    cost = up_loss[:, None] + down_loss
    moved = np.abs(up_loss)[:, None] + np.abs(down_loss)
    hope = DOUBT * moved - cost
    hope[up_bytes[:, None] + down_bytes > spare_bytes] = -np.inf
    hope[up_menu[:, None] == down_menu] = -np.inf
    taken: set[int] = set()
    best: list[Swap] = []
    for place in np.argsort(-hope, axis=None, kind="stable"):
        row, column = divmod(int(place), hope.shape[1])
        if len(best) == count or hope[row, column] <= 0.0:
            break
        swap = Swap(*ups[row], *downs[column])
        if taken.isdisjoint((swap.up, swap.down)):
            taken |= {swap.up, swap.down}
            best.append(swap)
    return best


def allocate(menus: Sequence[Menu], budget_bytes: int) -> Allocation:
    """The offers of least total loss within the budget. Raises: DoesNotFit."""
    useful = [_useful(menu.offers) for menu in menus]
    smallest = Allocation(tuple(offers[0] for offers in useful))
    if smallest.size_bytes > budget_bytes:
        raise DoesNotFit(
            "no formats are small enough",
            expected=f"at least {smallest.size_bytes} bytes",
            found=budget_bytes,
            do="Give more bytes, or take a smaller model",
        )
    steps = sorted(_hull_steps(useful), key=lambda step: -step.worth)
    best, worth, bound = _relaxed(smallest, steps, budget_bytes)
    if best.loss <= bound:
        return best
    gap = best.loss - bound + SLACK * best.loss
    core = [_within(offers, worth, gap) for offers in useful]
    return _exact(core, best, budget_bytes)


def _useful(offers: Sequence[Offer]) -> list[Offer]:
    """Those that no smaller or equal one beats, by rising bytes."""
    useful: list[Offer] = []
    for offer in sorted(offers, key=lambda each: (each.size_bytes, each.loss)):
        if not useful or offer.loss < useful[-1].loss:
            useful.append(offer)
    return useful


def _hull_steps(useful: Sequence[Sequence[Offer]]) -> Iterator[_Step]:
    """The steps of every menu, each menu's with falling worth."""
    for index, offers in enumerate(useful):
        steps: list[_Step] = []
        for offer in offers[1:]:
            before = offers[0] if not steps else steps[-1].offer
            while steps and _step(index, before, offer).worth >= steps[-1].worth:
                steps.pop()
                before = offers[0] if not steps else steps[-1].offer
            steps.append(_step(index, before, offer))
        yield from steps


def _step(menu: int, before: Offer, offer: Offer) -> _Step:
    return _Step(menu, offer, offer.size_bytes - before.size_bytes, before.loss - offer.loss)


def _relaxed(
    smallest: Allocation, steps: Sequence[_Step], budget_bytes: int
) -> tuple[Allocation, float, float]:
    """A good allocation, the worth of the last byte, and the loss that no allocation is below.

    The bound lets the first step that does not fit be taken in part.
    """
    chosen, left, loss = list(smallest.offers), budget_bytes - smallest.size_bytes, smallest.loss
    stuck: set[int] = set()
    worth, bound = 0.0, None
    for step in steps:
        if step.menu in stuck:
            continue
        if step.more_bytes > left:
            if bound is None:
                worth, bound = step.worth, loss - step.worth * left
            stuck.add(step.menu)
            continue
        chosen[step.menu] = step.offer
        left -= step.more_bytes
        loss -= step.less_loss
    best = Allocation(tuple(chosen))
    return best, worth, best.loss if bound is None else bound


def _within(offers: Sequence[Offer], worth: float, gap: float) -> list[tuple[float, Offer]]:
    """Offers, and by how much each misses the least cost where a byte costs its worth.

    One that misses it by more than the gap is in no allocation that beats the best one so far.
    """
    costs = [offer.loss + worth * offer.size_bytes for offer in offers]
    least = min(costs)
    return [
        (cost - least, offer)
        for cost, offer in zip(costs, offers, strict=True)
        if cost - least <= gap
    ]


def _exact(core: list[list[tuple[float, Offer]]], best: Allocation, budget: int) -> Allocation:
    """Sums of bytes and loss, menu by menu, where none that a smaller or equal one beats is left.

    Menus with the least to decide come first, so that many are short before the sums are many.
    """
    order = sorted(range(len(core)), key=lambda index: (len(core[index]), -core[index][-1][0]))
    bytes_, losses = np.zeros(1, np.int64), np.zeros(1)
    trail: list[tuple[Integers, Integers]] = []
    for place, index in enumerate(order):
        offers = [offer for _, offer in core[index]]
        sizes = np.array([offer.size_bytes for offer in offers], np.int64)
        of_offers = np.array([offer.loss for offer in offers])
        sums = (bytes_[:, None] + sizes).ravel()
        costs = (losses[:, None] + of_offers).ravel()
        rest = [[offer for _, offer in core[later]] for later in order[place + 1 :]]
        least = costs + _least_loss(rest, budget - sums)
        alive = np.flatnonzero(least <= best.loss * (1 + SLACK))
        alive = alive[np.lexsort((costs[alive], sums[alive]))]
        falling = np.minimum.accumulate(costs[alive])
        alive = alive[np.r_[True, costs[alive][1:] < falling[:-1]]] if len(alive) else alive
        trail.append((alive // len(offers), alive % len(offers)))
        bytes_, losses = sums[alive], costs[alive]
    if not len(losses) or losses.min() >= best.loss:
        return best
    chosen, state = list(best.offers), int(losses.argmin())
    for index, (parents, taken) in zip(reversed(order), reversed(trail), strict=True):
        chosen[index] = core[index][taken[state]][1]
        state = int(parents[state])
    return Allocation(tuple(chosen))


def _least_loss(menus: list[list[Offer]], left: Integers) -> Doubles:
    """What no choice from the menus is below, within each number of bytes; infinite: none fits."""
    base_bytes = sum(offers[0].size_bytes for offers in menus)
    base_loss = sum(offers[0].loss for offers in menus)
    steps = sorted(_hull_steps(menus), key=lambda step: -step.worth)
    places = np.cumsum([base_bytes, *(step.more_bytes for step in steps)]).astype(np.float64)
    levels = base_loss - np.cumsum([0.0, *(step.less_loss for step in steps)])
    bound = np.interp(left, places, levels)
    return np.where(left < base_bytes, np.inf, bound)
