"""The engine of a running server, slowed, made to say certain tokens, or made to fail.

In: a server and its loaded model. Out: a Puppet; `reset` lets the engine do as it would.
"""

from __future__ import annotations

import time
from typing import Any

from live_server import Live


class Puppet:
    """The engine of a server, and what it is made to do."""

    def __init__(self, running: Live, model: Any) -> None:
        self.live, self.model = running, model
        self.reset()
        self._run = model.engine.run
        model.engine.run = self._step
        # One token a step: what it is made to say follows from the count of steps.
        model.scheduler.speculation.drafts_for = lambda speculators, *_: [[] for _ in speculators]

    def reset(self) -> None:
        self.steps, self.seconds = 0, 0.0
        self.forced: list[int] = []
        self.fails_at: int | None = None

    def _step(self, parts: Any) -> Any:
        self.steps += 1
        if self.steps == self.fails_at:
            raise RuntimeError("torn")
        time.sleep(self.seconds)
        logits = self._run(parts)
        if self.forced and any(part.rows for part in parts):
            logits[:] = -50.0
            logits[:, self.forced.pop(0)] = 50.0
        return logits

    def idle(self) -> bool:
        return self.model.scheduler.running == 0

    def will_say(self, text: str, end: bool = True) -> None:
        """Have the next answer be this text, and its end."""
        self.forced = list(self.model.tokenizer.encode(text, special=False))
        if end:
            self.forced.append(min(self.model.tokenizer.end_tokens))
