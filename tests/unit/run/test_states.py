"""States against a plain model of them, in random orders of everything that can be done.

In: sequences that begin, step with and without guesses, are cut and end; each state is a number
made of all its tokens. Out: the state of a sequence is always that of its tokens, wherever it was
taken from; no place is held twice, and in the end none is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from crumb.architectures.registry import plan_of
from crumb.errors import DoesNotFit, UsageError
from crumb.run import states as module
from crumb.run.states import NOWHERE, SequenceState, StatePlan, States, plan_states

PLACES, GUESSES = 5, 3


def folded(value: float, tokens: Sequence[int]) -> float:
    """A number of all tokens in their order, exact in f32."""
    for token in tokens:
        value = (value * 7 + token + 1) % 8191
    return value


class Texts(RuleBasedStateMachine):
    """Sequences of two different tokens, so that beginnings are often equal."""

    def __init__(self) -> None:
        super().__init__()
        self.distance, module.DISTANCE_TOKENS = module.DISTANCE_TOKENS, 4
        self.rows = np.full((PLACES + GUESSES, 1), -1.0, np.float32)
        self.states = States(StatePlan(1, {}, PLACES, GUESSES), self.rows)
        self.sequences: list[tuple[SequenceState, list[int]]] = []

    def teardown(self) -> None:
        module.DISTANCE_TOKENS = self.distance

    def value(self, state: SequenceState) -> float:
        return 0.0 if state.is_empty else float(self.rows[state.place, 0])

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=14))
    def begin(self, prompt: list[int]) -> None:
        if len(self.sequences) == PLACES:
            assert not self.states.available
            with pytest.raises(DoesNotFit, match="no room for another"):
                self.states.begin(prompt)
            return
        state, count = self.states.begin(prompt)
        assert count < len(prompt)
        self.sequences.append((state, prompt[:count]))

    @precondition(lambda self: self.sequences)
    @rule(
        data=st.data(),
        new=st.lists(st.integers(0, 1), min_size=1, max_size=11),
        guessed=st.integers(0, GUESSES),
        wrong=st.integers(0, GUESSES),
        fails=st.booleans(),
        ends=st.booleans(),
    )
    def step(
        self,
        data: st.DataObject,
        new: list[int],
        guessed: int,
        wrong: int,
        fails: bool,
        ends: bool,
    ) -> None:
        state, tokens = data.draw(st.sampled_from(self.sequences))
        guessed = min(guessed, len(new) - 1)
        runs = self.states.runs(state, len(tokens), len(new), guessed, ends and not guessed)
        assert sum(run[0] for run in runs) == len(new)
        if fails:  # as if the engine had refused: the same step comes again, or the end
            self.states.drop(state)
            return
        done = 0
        for count, source, to in runs:
            before = 0.0 if source == NOWHERE else float(self.rows[source, 0])
            self.rows[to] = folded(before, new[done : done + count])
            done += count
        tokens += new
        self.states.stepped(state, tokens)
        if guessed:
            wrong = min(wrong, guessed)
            self.states.cut(state, wrong)
            del tokens[len(tokens) - wrong :]

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.sequences) - 1))
        self.states.end(*self.sequences.pop(index))

    @invariant()
    def every_state_is_that_of_its_tokens(self) -> None:
        for state, tokens in self.sequences:
            assert self.value(state) == folded(0.0, tokens)

    @invariant()
    def every_place_is_held_once_or_available(self) -> None:
        held = {state.place for state, _ in self.sequences}
        assert len(held) == len(self.sequences)
        waiting = sum(len(state.snapshots) for state, _ in self.sequences)
        assert self.states.available == PLACES - len(held) - waiting
        guesses = sum(len(state.guesses) for state, _ in self.sequences)
        assert self.states.free_guesses == GUESSES - guesses


Texts.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestTexts = Texts.TestCase


def read(states: States, prompt: Sequence[int]) -> int:
    """Read a prompt to its end; how many of its tokens were found read."""
    state, count = states.begin(prompt)
    states.runs(state, count, len(prompt) - count, ends=True)
    states.stepped(state, prompt)
    states.end(state, prompt)
    return count


def test_a_prompt_goes_on_from_the_longest_beginning_that_a_state_was_left_of() -> None:
    states = States(StatePlan(1, {}, 9, 0), np.zeros((9, 1), np.float32))
    first = list(range(700))
    assert read(states, first) == 0
    assert read(states, first) == 699  # its end is known, but the last token is wanted
    assert read(states, [*first, 1, 2]) == 700
    assert read(states, [*first[:600], 5]) == 512
    assert read(states, [*first[:300], 5]) == 256
    assert read(states, [5, *first]) == 0


def test_with_pages_beside_it_a_state_is_of_whole_pages_that_are_there() -> None:
    states = States(StatePlan(1, {}, 9, 0), np.zeros((9, 1), np.float32), multiple=16)
    prompt = list(range(600))
    read(states, prompt)
    for covered, expected in ((600, 592), (591, 512), (511, 256), (512, 512), (16, 0), (0, 0)):
        state, count = states.begin([*prompt, 1], covered)
        assert count == expected
        states.end(state, prompt[:count])


def test_only_guesses_are_taken_back() -> None:
    states = States(StatePlan(1, {}, 2, 2), np.zeros((4, 1), np.float32))
    state, _ = states.begin([1, 2, 3])
    states.runs(state, 0, 3, 2)
    states.stepped(state, [1, 2, 3])
    with pytest.raises(UsageError, match=r"no guesses.*at most 2, found 3"):
        states.cut(state, 3)
    states.cut(state, 2)
    with pytest.raises(UsageError, match="no guesses"):
        states.cut(state, 1)


SMALL = {"model_type": "rwkv", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}


def test_places_are_planned_by_the_bytes_of_a_state() -> None:
    small = plan_states(plan_of(SMALL), 3)
    assert small.floats == 2 * (5 * 32 + 3 * 32)  # five shifts and a recurrence in each block
    assert (small.places, small.guesses) == (3 * 9, 12)
    large = plan_states(plan_of(SMALL | {"hidden_size": 1 << 20}), 3)
    assert (large.places, large.guesses) == (3 * 2, 1)
    assert plan_states(plan_of(SMALL), 0).total_bytes == 4 * small.floats
