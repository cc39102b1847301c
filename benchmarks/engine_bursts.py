"""Our engine in bursts: prompts read, tokens decoded, alone and together.

In: a crumb directory, threads. Out: Bursts with seconds and processor seconds, as peers.py gives
them for other programs, so that both can alternate within one run.
Greedy tokens; the prompts are random tokens; no prefix is reused.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from peers import Burst

from crumb.checkpoints.opening import open_checkpoint
from crumb.run.engine import Engine, EngineSequence, Rows, StepPart
from crumb.run.memory_plan import EngineSettings, WeightsKind

CONTEXT_TOKENS = 1280
MOST_SEQUENCES = 16


class OurEngine:
    """A model of ours, asked one burst at a time."""

    def __init__(self, folder: Path, threads: int, weights: WeightsKind) -> None:
        begin = time.perf_counter()
        self.checkpoint = open_checkpoint(folder)
        settings = EngineSettings(
            context_tokens=CONTEXT_TOKENS,
            sequences=MOST_SEQUENCES,
            threads=threads,
            weights=weights,
        )
        self.engine = Engine(self.checkpoint, settings)
        self.load_seconds = time.perf_counter() - begin
        vocabulary = self.engine.plan.vocabulary
        self.tokens = np.random.default_rng(0).integers(2, vocabulary, CONTEXT_TOKENS).tolist()
        self.warmed: set[int] = set()

    def token_bytes(self) -> int:
        """Bytes of weights that every decoded token reads: all but the embedding's table."""
        embedding = self.engine.plan.stages[0].tensors()[0].name
        tensors = self.checkpoint.tensors
        return tensors.size_bytes() - tensors.entry(embedding).size_bytes

    def prefill(self, tokens: int) -> Burst:
        """One prompt, in chunks of the engine's steps. Untimed once before, as the peer does."""
        if tokens not in self.warmed:
            self.warmed.add(tokens)
            self.prefill(tokens)
        sequence = self.engine.begin(self.tokens[:tokens], reuse=False)
        begin, processors = time.perf_counter(), time.process_time()
        self._read(sequence, self.tokens[:tokens])
        burst = _burst(begin, processors, tokens)
        self.engine.end(sequence)
        return burst

    def decode(self, tokens: int, sequences: int = 1, prompt: int = 16) -> Burst:
        """`tokens` steps of `sequences` sequences together, each after its own short prompt."""
        together = []
        for index in range(sequences):
            given = self.tokens[index : index + prompt]
            together.append(self.engine.begin(given, reuse=False))
            self._read(together[-1], given)
        last = [self.tokens[0]] * sequences
        begin, processors = time.perf_counter(), time.process_time()
        for _ in range(tokens):
            parts = [StepPart(each, (token,)) for each, token in zip(together, last, strict=True)]
            last = self.engine.run(parts).argmax(axis=1).tolist()
        burst = _burst(begin, processors, tokens * sequences)
        for each in together:
            self.engine.end(each)
        return burst

    def _read(self, sequence: EngineSequence, tokens: list[int]) -> None:
        at_once = self.engine.settings.step_tokens
        for begin in range(0, len(tokens), at_once):
            self.engine.run([StepPart(sequence, tokens[begin : begin + at_once], Rows.LAST)])


def _burst(begin: float, processors: float, tokens: int) -> Burst:
    return Burst(time.perf_counter() - begin, time.process_time() - processors, tokens)
