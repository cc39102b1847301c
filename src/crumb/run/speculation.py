"""Guesses the next tokens from a text so far, so that one step of the engine may give several.

In: a text's tokens as they come, how long steps take, how many guesses came true. Out: drafts: the
tokens that followed the last time the text ended like this, as many as pay. A draft is only a
guess: each token is still chosen from its own logits, so the text is the same without.
Sources: prompt lookup (apoorvumang/prompt-lookup-decoding); Leviathan (arXiv 2211.17192, 3.3) for
the tokens that a draft gives. Here a token counts as right when the sampler chooses it.
"""

from __future__ import annotations

from collections.abc import Sequence

from crumb.run.generation import Guesses
from crumb.run.pacing import StepTimes

MATCHES = (8, 5, 3)
"""Tokens that must have been there before, the longest tried first."""

TRUST = {8: 0.9, 5: 0.8, 3: 0.4}
"""Share of guesses that come true, by the length of the match, before anything was seen."""

MOST_DRAFTED = 12
"""Tokens of one draft."""

LEAST_GAIN = 1.05
"""A draft that promises less is not worth its uncertainty."""

LEARNING_RATE = 0.2
PROBE_STEPS = 64
"""Steps without a draft after which one is tried again."""

PROBE_TOKENS = 3
"""Of a draft that is only made to see how things are: enough to be worth something again."""


class Speculator:
    """One text: where it has been before."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._follows: dict[int, dict[tuple[int, ...], int]] = {length: {} for length in MATCHES}
        self._trust = dict(TRUST)
        self._match = MATCHES[-1]
        self._untried = 0
        for token in tokens:
            self.extend(token)

    def extend(self, token: int) -> None:
        """The text goes on: whatever it ended with, this token follows."""
        tokens, place = self._tokens, len(self._tokens)
        for length, follows in self._follows.items():
            if place >= length:
                follows[tuple(tokens[place - length :])] = place
        tokens.append(token)

    def draft(self, most: int) -> list[int]:
        """What followed the last time; a text that repeats itself goes on repeating itself."""
        tokens = self._tokens
        for length in MATCHES:
            place = self._follows[length].get(tuple(tokens[-length:])) if tokens else None
            if place is not None:
                self._match = length
                period = len(tokens) - place
                draft = tokens[place : place + most]
                while len(draft) < most:
                    draft.append(draft[len(draft) - period])
                return draft
        return []

    def expected(self, drafted: int) -> float:
        """Tokens that a step with so many of the last draft gives, its own included."""
        trust = self._trust[self._match]
        return float(sum(trust**count for count in range(drafted + 1)))

    def learn(self, drafted: int, right: int) -> None:
        """So many tokens of the last draft were as guessed, from its beginning on."""
        for place in range(min(right + 1, drafted)):
            share = self._trust[self._match]
            self._trust[self._match] += LEARNING_RATE * ((place < right) - share)
        self._untried = 0

    def is_to_probe(self) -> bool:
        """Whether it has been long enough that a draft was declined."""
        self._untried += 1
        return self._untried >= PROBE_STEPS


class Speculation:
    """What the scheduler asks before a step, and tells after it."""

    def __init__(self) -> None:
        self.times = StepTimes()
        self.guesses = Guesses()

    def drafts_for(
        self, speculators: Sequence[Speculator | None], rooms: Sequence[int], rows: int
    ) -> list[list[int]]:
        """A draft for each sequence of a step, perhaps an empty one.

        `rooms`: tokens each may still take beside its next one. `rows`: free rows of the step.
        """
        drafts = [
            [] if each is None else each.draft(min(room, MOST_DRAFTED))
            for each, room in zip(speculators, rooms, strict=True)
        ]
        longest = max(map(len, drafts), default=0)
        if not longest:
            return drafts
        count = len(drafts)
        plain = count / self.times.seconds(count)
        best, best_gain = 0, LEAST_GAIN
        for most in range(1, longest + 1):
            lengths = [min(most, len(draft)) for draft in drafts]
            if sum(lengths) > rows:
                break
            tokens = sum(
                1.0 if each is None else each.expected(length)
                for each, length in zip(speculators, lengths, strict=True)
            )
            gain = tokens / self.times.seconds(count + sum(lengths)) / plain
            if gain > best_gain:
                best, best_gain = most, gain
        if not best and PROBE_TOKENS * count <= rows:
            asked = [each for each, draft in zip(speculators, drafts, strict=True) if draft]
            due = [each.is_to_probe() for each in asked if each is not None]  # each counts
            if any(due):
                best = PROBE_TOKENS
        return [draft[:best] for draft in drafts]

    def learn(self, speculator: Speculator | None, drafted: int, right: int) -> None:
        """What became of a draft."""
        if speculator is not None and drafted:
            speculator.learn(drafted, right)
            self.guesses.add(drafted, right)
