"""States of sequences: what recurrences and short convolutions keep, of constant size.

In: a Plan, tokens of sequences. Out: places of states in one array, and the runs that a step of the
native engine takes. A state cannot be cut back to an earlier token: snapshots of it, at fixed
distances and where sequences ended, serve prompts that begin alike; behind guessed tokens one lies
for each. Refuses, with DoesNotFit, more sequences than there are places.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan
from crumb.errors import DoesNotFit, UsageError
from crumb.operations.table import row_of
from crumb.run.page_store import next_key

DISTANCE_TOKENS = 256
"""Tokens from one snapshot of a sequence to the next; whole pages."""

SNAPSHOTS, SNAPSHOT_BYTES = 8, 64 << 20
"""Of each sequence that the cache has room for: at most so many, and one at least."""

GUESSES, GUESSES_BYTES = 12, 64 << 20
"""States behind guessed tokens, of all sequences together: none where one takes more."""

NOWHERE = -1

Run = tuple[int, int, int]
"""Rows, the place of the state they begin with, and that of the one behind them."""


@dataclass(frozen=True)
class StatePlan:
    """Rows of the array that holds all states."""

    floats: int  # of one sequence; 0: the model keeps none
    begins: Mapping[str, int]  # slot of an operation -> floats before its own
    places: int  # of sequences and snapshots
    guesses: int  # places behind those

    @property
    def total_bytes(self) -> int:
        return 4 * self.floats * (self.places + self.guesses)


def plan_states(plan: Plan, sequences: int) -> StatePlan:
    """Places for so many sequences at once; 0: whole texts, each in one step."""
    begins, floats = dict[str, int](), 0
    for stage in plan.stages:
        for operation in stage.operations:
            slot = getattr(operation, "state", None)
            needed = row_of(operation).needs(operation).state_floats
            if slot is not None and needed:
                begins[slot] = floats
                floats += needed
    if not floats:
        return StatePlan(0, {}, 0, 0)
    if not sequences:
        return StatePlan(floats, begins, 1, 0)
    snapshots = min(SNAPSHOTS, max(1, SNAPSHOT_BYTES // (4 * floats)))
    guesses = min(GUESSES, GUESSES_BYTES // (4 * floats))
    return StatePlan(floats, begins, sequences * (1 + snapshots), guesses)


@dataclass(eq=False, slots=True)
class SequenceState:
    """Where one sequence's state lies."""

    place: int
    is_empty: bool = True  # before the first token
    is_whole: bool = True  # False while a step changes it
    keys: list[bytes] = field(default_factory=list)  # of its first stretches of DISTANCE_TOKENS
    snapshots: list[tuple[int, int]] = field(default_factory=list)  # tokens, place: of this step
    guesses: list[int] = field(default_factory=list)  # places: before the guess that was last


Key = tuple[bytes, tuple[int, ...]]
"""Of whole stretches, and the tokens behind them."""


class States:
    """Those of one engine."""

    def __init__(self, plan: StatePlan, rows: NDArray[np.float32], multiple: int = 1) -> None:
        """Shapes: rows (places + guesses, floats). `multiple`: of tokens that snapshots are of,
        where the cache has pages beside them.
        """
        self._rows, self._plan, self._multiple = rows, plan, multiple
        self._free = list(range(plan.places - 1, -1, -1))
        self._guesses = list(range(plan.places, plan.places + plan.guesses))
        self._names: dict[int, Key] = {}
        self._places: dict[bytes, dict[tuple[int, ...], int]] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # snapshots, the longest unused first

    @property
    def available(self) -> int:
        """Sequences that may begin; snapshots make room for them."""
        return len(self._free) + len(self._unused)

    @property
    def use(self) -> float:
        """Share of the places that sequences hold, 0 to 1."""
        return 1.0 - self.available / self._plan.places

    @property
    def free_guesses(self) -> int:
        """Guessed tokens that a step may take."""
        return len(self._guesses)

    def begin(self, tokens: Sequence[int], most: int | None = None) -> tuple[SequenceState, int]:
        """A state for this text, and of how many of its first tokens it is already.

        `most`: tokens that the cache has pages of. The last token is never among them: its logits
        are still wanted. Raises: DoesNotFit.
        """
        keys, count, snapshot = self._longest(tokens, most)
        spared = snapshot if self.available > 1 else None
        if spared is not None:
            self._unused.pop(spared)  # so that it is not taken for this very sequence
        place = self._take()
        if spared is not None:
            self._unused[spared] = None
        if snapshot is not None:
            self._rows[place] = self._rows[snapshot]
        return SequenceState(place, not count, keys=keys[: count // DISTANCE_TOKENS]), count

    def _longest(
        self, tokens: Sequence[int], most: int | None
    ) -> tuple[list[bytes], int, int | None]:
        """Keys of the stretches of a text, and the longest beginning with a snapshot."""
        last = len(tokens) - 1 if most is None else min(most, len(tokens) - 1)
        keys, key, best, place = list[bytes](), b"", 0, None
        for begin in range(0, last + 1, DISTANCE_TOKENS):
            for rest, snapshot in self._places.get(key, {}).items():
                count = begin + len(rest)
                if best < count <= last and tuple(tokens[begin:count]) == rest:
                    best, place = count, snapshot
            key = next_key(key, tokens[begin : begin + DISTANCE_TOKENS])
            keys.append(key)
        return keys, best, place

    def _take(self) -> int:
        """A place whose state is nobody's. Raises: DoesNotFit."""
        if self._free:
            return self._free.pop()
        if not self._unused:
            raise DoesNotFit(
                "there is no room for another sequence's state",
                expected="a free place",
                found=f"{self._plan.places} places, all held",
                do="Finish or drop a sequence, or load the model for more sequences",
            )
        place, _ = self._unused.popitem(last=False)
        key, rest = self._names.pop(place)
        del self._places[key][rest]
        if not self._places[key]:
            del self._places[key]
        return place

    def runs(
        self, state: SequenceState, past: int, count: int, guessed: int = 0, ends: bool = False
    ) -> list[Run]:
        """How a step takes the next tokens of a sequence, the last of which are guesses.

        Snapshots are made on the way, and where a prompt `ends` before its last token: answers are
        often written anew in the next one, and begin otherwise. They push out those that were not
        used for the longest.
        """
        self.drop(state)
        state.is_whole = False
        certain, runs, done = count - guessed, list[Run](), 0
        source = NOWHERE if state.is_empty else state.place
        first = (past // DISTANCE_TOKENS + 1) * DISTANCE_TOKENS
        stops = {*range(first, past + certain, DISTANCE_TOKENS)}
        last = (past + count - 1) // self._multiple * self._multiple
        if ends and last > past:
            stops.add(last)
        for end in sorted(stops):
            if not self.available:
                break
            place = self._take()
            state.snapshots.append((end, place))
            runs.append((end - past - done, source, place))
            source, done = place, end - past
        for end in range(certain, count):
            guess = self._guesses.pop()
            state.guesses.append(guess)
            runs.append((end - done, source, guess))
            source, done = guess, end
        runs.append((count - done, source, state.place))
        return runs

    def stepped(self, state: SequenceState, tokens: Sequence[int]) -> None:
        """The runs were made: all tokens of the sequence, those of the step included."""
        state.is_empty, state.is_whole = False, True
        for count, place in state.snapshots:
            self._learn(state, tokens[:count], place)
        state.snapshots = []
        if len(tokens) % DISTANCE_TOKENS == 0 and not state.guesses and self.available:
            place = self._take()
            self._rows[place] = self._rows[state.place]
            self._learn(state, tokens, place)

    def cut(self, state: SequenceState, count: int) -> None:
        """Take back the last guesses of a step; 0: all came true. Raises: UsageError."""
        if count > len(state.guesses):
            raise UsageError(
                "a state cannot forget tokens that were no guesses",
                expected=f"at most {len(state.guesses)}",
                found=count,
            )
        if count:
            self._rows[state.place] = self._rows[state.guesses[-count]]
        self.drop(state)

    def end(self, state: SequenceState, tokens: Sequence[int]) -> None:
        """Let a state go; it may serve a prompt that goes on from there."""
        self.drop(state)
        if state.is_whole and not state.is_empty and len(tokens) % self._multiple == 0:
            self._learn(state, tokens, state.place)
        else:
            self._free.append(state.place)

    def drop(self, state: SequenceState) -> None:
        """Let go what a step holds beside the state, done or failed."""
        self._guesses += state.guesses
        self._free += [place for _, place in state.snapshots]
        state.guesses, state.snapshots = [], []

    def _learn(self, state: SequenceState, tokens: Sequence[int], place: int) -> None:
        """A place nobody holds has the state behind these tokens."""
        whole = len(tokens) // DISTANCE_TOKENS
        while len(state.keys) < whole:
            begin = len(state.keys) * DISTANCE_TOKENS
            before = state.keys[-1] if state.keys else b""
            state.keys.append(next_key(before, tokens[begin : begin + DISTANCE_TOKENS]))
        key = state.keys[whole - 1] if whole else b""
        rest = tuple(tokens[whole * DISTANCE_TOKENS :])
        twin = self._places.get(key, {}).get(rest)
        if twin is not None:
            self._unused.move_to_end(twin)
            self._free.append(place)
            return
        self._places.setdefault(key, {})[rest] = place
        self._names[place] = key, rest
        self._unused[place] = None
