"""What the next step of an engine runs: tokens of texts, guesses behind them, chunks of prompts.

In: the requests that decode and those whose prompts are read. Out: parts, and whose they are. A
step decodes a token of as many sequences as it has rows for, in rotation; a share of the rows is
kept for prompts while any are read, as much as texts may wait for. Guessed tokens come in where no
prompt waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crumb.run.consumers import Consumer
from crumb.run.engine import Engine, EngineSequence, Rows, StepPart
from crumb.run.handle import Handle
from crumb.run.pacing import PromptPace
from crumb.run.speculation import Speculation

PROMPT_SHARE = 4
"""One row in so many is kept for prompts while any are read."""


@dataclass(eq=False, slots=True)
class Active:
    """A request at work."""

    handle: Handle[Any]
    consumer: Consumer[Any]
    sequence: EngineSequence
    most_pages: int  # that it may come to hold
    read_tokens: int  # of its prompt

    @property
    def unread_tokens(self) -> int:
        return len(self.consumer.prompt) - self.read_tokens

    def rows_of(self, count: int) -> int:
        """How many rows of the prompt's next tokens leave the step."""
        end = self.read_tokens + count
        return max(end - max(self.consumer.first_row, self.read_tokens), 0)

    @property
    def room_tokens(self) -> int:
        """How many the sequence may still take."""
        return self.consumer.most_tokens - self.sequence.length_tokens


class StepComposer:
    """Of one engine."""

    def __init__(self, engine: Engine, speculation: Speculation) -> None:
        self._engine, self.speculation = engine, speculation
        self._pace = PromptPace(speculation.times)
        self._prompts_next = False  # whose turn it is where a step has a single row

    def compose(
        self, reading: list[Active], decoding: deque[Active]
    ) -> tuple[list[Active], list[StepPart]]:
        """What the next step runs: tokens of decoding sequences, then chunks of prompts."""
        rows, rows_out = self._engine.settings.step_tokens, self._engine.logits_rows
        most = min(rows, rows_out)
        if reading and decoding:
            most = self._decoding_rows(reading, rows, rows_out)
        chosen: list[Active] = []
        if most >= len(decoding):
            chosen += decoding
        else:
            for _ in range(most):
                chosen.append(decoding[0])
                decoding.rotate(-1)
        parts = [StepPart(each.sequence, (each.consumer.next_token,)) for each in chosen]
        if reading:
            room = rows - len(parts)
            chunk_rows = self._pace.rows(len(parts), len(reading), room) if parts else rows
            self._add_chunks(reading, chosen, parts, chunk_rows, rows_out - len(parts))
        elif len(chosen) == len(decoding):
            self._add_drafts(chosen, parts, min(rows, rows_out) - len(parts))
        return chosen, parts

    def note(self, chosen: Sequence[Active], parts: Sequence[StepPart], seconds: float) -> None:
        """A step that was composed here took so long."""
        rows = sum(len(part.tokens) for part in parts)
        read = sum(
            len(part.tokens)
            for each, part in zip(chosen, parts, strict=True)
            if each.unread_tokens > 0
        )
        if not read:
            self.speculation.times.note(rows, seconds)
        elif read < rows:
            self._pace.note(rows - read, read, seconds)

    def _add_drafts(self, chosen: list[Active], parts: list[StepPart], rows: int) -> None:
        """Guessed tokens behind the next ones, where that pays."""
        speculators = [each.consumer.speculator for each in chosen]
        rows = min(rows, self._engine.most_guessed)
        if rows < 1 or not any(speculators):
            return
        rooms = [each.room_tokens - 1 for each in chosen]
        drafts = self.speculation.drafts_for(speculators, rooms, rows)
        for place, draft in enumerate(drafts):
            if draft:
                sequence, tokens, *_ = parts[place]
                parts[place] = StepPart(sequence, (*tokens, *draft), Rows.ALL, len(draft))

    def _decoding_rows(self, reading: list[Active], rows: int, rows_out: int) -> int:
        """How many sequences may decode beside the prompts that are read."""
        if min(rows, rows_out) == 1:
            self._prompts_next = not self._prompts_next
            return 0 if self._prompts_next else 1
        unread = sum(each.unread_tokens for each in reading)
        for_prompts = min(unread, max(1, rows // PROMPT_SHARE))
        unread_out = sum(each.rows_of(each.unread_tokens) for each in reading)
        out_for_prompts = min(unread_out, max(1, rows_out // PROMPT_SHARE))
        return min(rows - for_prompts, rows_out - out_for_prompts)

    def _add_chunks(
        self,
        reading: list[Active],
        chosen: list[Active],
        parts: list[StepPart],
        rows: int,
        rows_out: int,
    ) -> None:
        """Fill a step with prompts: half of its rows are the oldest's, the shortest have the rest.

        So a short prompt need not wait for a long one, and a long one for ever shorter ones.
        """
        oldest = reading[0]
        counts = dict.fromkeys(reading, 0)
        counts[oldest] = min(oldest.unread_tokens, -(-rows // 2))
        rows -= counts[oldest]
        by_length = sorted(reading, key=lambda each: each.unread_tokens - counts[each])
        for each in by_length:
            more = min(each.unread_tokens - counts[each], rows)
            counts[each] += more
            rows -= more
        for each, count in counts.items():
            prompt, begin = each.consumer.prompt, each.read_tokens
            count -= max(each.rows_of(count) - rows_out, 0)  # those come with the next step
            if count:
                out = each.rows_of(count)
                parts.append(StepPart(each.sequence, prompt[begin : begin + count], out))
                chosen.append(each)
                rows_out -= out
