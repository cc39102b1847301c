"""Prompts are read beside texts at a pace that lets nobody wait long, and that changes no token."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

import crumb
from crumb.embedded import MODELS
from crumb.requests.generate_request import GenerateRequest, make_request
from crumb.run import scheduler
from crumb.run.engine import StepPart
from crumb.run.language_model import LanguageModel
from crumb.run.pacing import (
    FIRST_ROWS,
    LEAST_ROWS,
    MOST_STEPS,
    UNNOTICED_SECONDS,
    PromptPace,
    StepTimes,
)

READERS = 4
LONG = "The wind went over the water and the boats came home. " * 32


@pytest.fixture(scope="module")
def model() -> Iterator[LanguageModel]:
    with crumb.load(
        MODELS["novella-7m"], sequences=READERS + 1, context_tokens=512, threads=1
    ) as loaded:
        yield loaded


def ask(prompt: str, tokens: int) -> GenerateRequest:
    return make_request(prompt, max_tokens=tokens, ignore_end=True, speculate=False)


class Machine:
    """A clock that steps move: so much for a step, for each text and for each row of a prompt."""

    def __init__(self, step: float, text: float, row: float, noise: float = 0.0) -> None:
        self.now, self.costs, self.noise = 0.0, (step, text, row), noise
        self.steps: list[tuple[int, int, float]] = []  # texts, rows of prompts, seconds
        self._draw = random.Random(1)

    def perf_counter(self) -> float:
        return self.now

    def plain(self, texts: int) -> float:
        step, text, _ = self.costs
        return step + text * texts

    def take(self, parts: Sequence[StepPart]) -> None:
        texts = sum(len(part.tokens) == 1 and part.sequence.length_tokens > 3 for part in parts)
        rows = sum(len(part.tokens) for part in parts) - texts
        seconds = self.plain(texts) + self.costs[2] * rows
        seconds *= 1.0 + self.noise * self._draw.random()
        self.now += seconds
        self.steps.append((texts, rows, seconds))


def run_on(
    machine: Machine, model: LanguageModel, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[int, ...]]:
    """Texts on their way, and then a long prompt; the tokens of all."""
    run, composer = model.engine.run, model.scheduler._composer
    composer.speculation.times = StepTimes()
    composer._pace = PromptPace(composer.speculation.times)

    def slowed(parts: Sequence[StepPart]) -> NDArray[np.float32]:
        machine.take(parts)
        return run(parts)

    monkeypatch.setattr(scheduler, "time", SimpleNamespace(perf_counter=machine.perf_counter))
    monkeypatch.setattr(model.engine, "run", slowed)
    handles = [model.submit(ask(f"{number} men", 110)) for number in range(READERS)]
    for handle in handles:
        for _ in range(12):
            next(handle)
    long = model.submit(ask(prompt, 2))
    tokens = [handle.result().tokens for handle in (*handles, long)]
    monkeypatch.undo()
    return tokens


MACHINES = {
    "a slow prompt": Machine(0.010, 0.001, 0.002),
    "a fast prompt": Machine(0.020, 0.002, 0.0004),
    "a fast machine": Machine(0.0005, 0.0001, 0.0006),
    "noise": Machine(0.010, 0.001, 0.002, 0.3),
}


@pytest.mark.parametrize("name", MACHINES)
def test_readers_wait_for_few_steps_while_a_long_prompt_is_read(
    name: str, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = MACHINES[name]
    prompt = f"It was {name}. {LONG}"
    tokens = run_on(machine, model, prompt, monkeypatch)
    together = [step for step in machine.steps if step[0] == READERS and step[1] > 1][3:-1]
    assert together, "the prompt was read beside the texts"
    longest = MOST_STEPS * machine.plain(READERS) * 1.25 * (1.0 + machine.noise)
    allowed = max(longest, machine.plain(READERS) + 1.25 * UNNOTICED_SECONDS)
    assert max(seconds for _, _, seconds in together) <= allowed
    budget = max(machine.plain(READERS) * (MOST_STEPS - 1.0), UNNOTICED_SECONDS)
    rows = sum(rows for _, rows, _ in together) / len(together)
    assert rows >= 0.5 * min(budget / machine.costs[2], 200), "and no slower than it has to be"
    requests = [*(ask(f"{number} men", 110) for number in range(READERS)), ask(prompt, 2)]
    assert tokens == [model.run([each])[0].tokens for each in requests]


def test_before_anything_was_measured_the_pace_is_a_guess() -> None:
    times = StepTimes()
    pace = PromptPace(times)
    assert pace.rows(4, 1, 200) == FIRST_ROWS
    assert pace.rows(4, 1, 3) == 3
    pace.note(4, 10, 1.0)
    assert pace.rows(4, 1, 200) == FIRST_ROWS
    times.note(4, 0.01)
    pace.note(4, 10, 1.01)
    assert pace.rows(4, 1, 200) == LEAST_ROWS


def test_a_step_that_something_else_held_up_changes_the_pace_little() -> None:
    times = StepTimes()
    pace = PromptPace(times)
    for _ in range(20):
        times.note(4, 0.02)
        pace.note(4, 10, 0.03)
    before = pace.rows(4, 1, 200)
    assert pace.rows(4, 4, 200) == before
    assert pace.rows(4, 12, 200) == pytest.approx(3 * before, abs=3), "more wait than read"
    assert 15 <= before <= 25
    pace.note(4, 10, 9.0)
    assert pace.rows(4, 1, 200) >= 0.8 * before - 1
