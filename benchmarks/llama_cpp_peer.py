"""llama.cpp as a peer: loads a GGUF file once, then runs what each line of stdin asks.

In: a file, threads; JSON lines such as {"run": "decode", "tokens": 32}. Out: one JSON line when
ready, then one line for each request: seconds inside llama_decode, on the clock and of processors,
and the tokens; or the error.
Needs llama-cpp-python or ik-llama-cpp-python and nothing of crumb, so that each build of llama.cpp
can have an environment of its own; benchmarks/peers.py starts this program.
Token ids are drawn at random: neither tokenizing nor sampling is timed.
Refuses logits that are not finite.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llama_cpp_library import (
    LOG_CALLBACK,
    api,
    attach_threads,
    clear_cache,
    describe_library,
    make_threads,
    model_settings,
    set_log,
    synchronize,
)

BATCH_TOKENS = 512
"""n_batch and n_ubatch, unless a prompt is longer."""
CELLS = 1024
"""Positions of a context's cache, unless a batch or the sequences need more."""
CELLS_PER_SEQUENCE = 256
FIRST_WORD = 259
"""Token ids below are special tokens and bytes."""


@dataclass
class Log:
    """Keeps what llama.cpp says; stdout belongs to the answers."""

    parts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.callback = LOG_CALLBACK(self._keep)
        set_log(self.callback)

    def _keep(self, _level: int, text: bytes, _data: object) -> None:
        self.parts.append(text.decode(errors="replace"))

    def lines_with(self, word: str) -> list[str]:
        """The lines that hold a word, without the name of the function before the colon."""
        lines = "".join(self.parts).splitlines()
        return [line.partition(":")[2].strip() for line in lines if word in line]

    def last_lines(self, count: int = 5) -> str:
        return "\n".join("".join(self.parts).splitlines()[-count:])


@dataclass(frozen=True)
class Timed:
    """What decoding took."""

    seconds: float = 0.0
    processor_seconds: float = 0.0  # of all threads; below threads * seconds where others ran

    def __add__(self, other: Timed) -> Timed:
        return Timed(self.seconds + other.seconds, self.processor_seconds + other.processor_seconds)


class Batch:
    """A llama_batch that is filled again for every step."""

    def __init__(self, tokens: int) -> None:
        self.struct = api.llama_batch_init(tokens, 0, 1)

    def fill(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        """One row for each token: id, position, sequence, whether its logits are wanted."""
        struct = self.struct
        struct.n_tokens = len(rows)
        for number, (token, position, sequence, wanted) in enumerate(rows):
            struct.token[number] = token
            struct.pos[number] = position
            struct.n_seq_id[number] = 1
            struct.seq_id[number][0] = sequence
            struct.logits[number] = wanted


class Context:
    """One llama_context: some sequences, batches of up to `batch_tokens`."""

    def __init__(self, engine: Engine, batch_tokens: int, sequences: int) -> None:
        settings = api.llama_context_default_params()
        cells = max(CELLS, batch_tokens, CELLS_PER_SEQUENCE * sequences)
        self.cells_per_sequence = cells // sequences
        settings.n_ctx = cells
        settings.n_batch = settings.n_ubatch = batch_tokens
        settings.n_seq_max = sequences
        settings.n_threads = engine.threads
        settings.n_threads_batch = engine.batch_threads
        self.pointer = api.llama_init_from_model(engine.model, settings)
        if not self.pointer:
            raise RuntimeError(f"llama.cpp made no context:\n{engine.log.last_lines()}")
        attach_threads(self.pointer, engine.pools)
        self.sequences = sequences
        self.vocabulary = engine.vocabulary
        self.random = random.Random(0)
        self.batch = Batch(batch_tokens)

    def clear(self) -> None:
        clear_cache(self.pointer)

    def prompt(self, tokens: int) -> Timed:
        """Decode one batch of `tokens` for each sequence from position 0."""
        self.clear()
        rows = [
            (self.draw(), position, sequence, position == tokens - 1)
            for sequence in range(self.sequences)
            for position in range(tokens)
        ]
        return self._decode(rows)

    def continue_from(self, begin: int, tokens: int) -> Timed:
        """One token of every sequence at a time."""
        total = Timed()
        for position in range(begin, begin + tokens):
            rows = [(self.draw(), position, each, True) for each in range(self.sequences)]
            total += self._decode(rows)
        return total

    def draw(self) -> int:
        return self.random.randrange(FIRST_WORD, self.vocabulary)

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> Timed:
        self.batch.fill(rows)
        begin, processor_begin = time.perf_counter(), time.process_time()
        status = api.llama_decode(self.pointer, self.batch.struct)
        synchronize(self.pointer)
        timed = Timed(time.perf_counter() - begin, time.process_time() - processor_begin)
        if status:
            raise RuntimeError(f"llama_decode returned {status} for {len(rows)} tokens")
        return timed

    def check_logits(self) -> None:
        """Raises: ValueError for a last token whose logits are not all finite."""
        logits = api.llama_get_logits_ith(self.pointer, -1)
        if not all(map(math.isfinite, logits[: self.vocabulary])):
            raise ValueError("llama.cpp's logits are not finite")


class Engine:
    """A loaded model and its contexts, one for each size of batch and number of sequences."""

    def __init__(self, path: str, threads: int, batch_threads: int, repacked: bool) -> None:
        self.log = Log()
        self.threads, self.batch_threads = threads, batch_threads
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(path.encode(), model_settings(repacked))
        if not self.model:
            raise RuntimeError(f"llama.cpp did not load {path}:\n{self.log.last_lines()}")
        self.vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.pools = make_threads(threads, batch_threads)
        self.contexts: dict[tuple[int, int], Context] = {}
        self.warmed: set[tuple[Context, int]] = set()

    def describe(self) -> dict[str, Any]:
        """What was built and loaded; the buffers tell which matrices were repacked for what."""
        return {
            "ready": True,
            **describe_library(self.model),
            "threads": self.threads,
            "batch_threads": self.batch_threads,
            "buffers": self.log.lines_with("model buffer size"),
        }

    def context(self, batch_tokens: int, sequences: int) -> Context:
        key = max(batch_tokens, BATCH_TOKENS), sequences
        if key not in self.contexts:
            self.contexts[key] = Context(self, *key)
        return self.contexts[key]

    def prefill(self, tokens: int) -> dict[str, Any]:
        """One prompt in one batch, logits of its last token only. Untimed once before."""
        context = self.context(tokens, 1)
        if (context, tokens) not in self.warmed:
            self.warmed.add((context, tokens))
            context.prompt(tokens)
        timed = context.prompt(tokens)
        context.check_logits()
        return {**asdict(timed), "tokens": tokens}

    def decode(self, tokens: int, sequences: int = 1, prompt: int = 16) -> dict[str, Any]:
        """`tokens` steps of all sequences together, after a prompt and one untimed step."""
        context = self.context(prompt * sequences, sequences)
        needed = prompt + 1 + tokens
        if needed > context.cells_per_sequence:
            cells = context.cells_per_sequence
            raise ValueError(f"{needed} positions are asked for, a sequence has {cells}")
        context.prompt(prompt)
        context.continue_from(prompt, 1)
        timed = context.continue_from(prompt + 1, tokens)
        context.check_logits()
        return {**asdict(timed), "tokens": tokens * sequences}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run one request. Raises: KeyError or TypeError for one that is not understood."""
        runs = {"prefill": self.prefill, "decode": self.decode}
        return runs[request.pop("run")](**request)


def answers(engine: Engine) -> Iterator[dict[str, Any]]:
    """One answer for each line of stdin, until it ends."""
    for line in sys.stdin:
        try:
            yield engine.answer(json.loads(line))
        except Exception as error:  # the caller decides; the model stays loaded
            yield {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-threads", type=int, help="as --threads when not given")
    parser.add_argument("--repacked", action="store_true", help="at run time; ik_llama.cpp only")
    asked = parser.parse_args()
    batch_threads = asked.batch_threads or asked.threads
    engine = Engine(asked.gguf, asked.threads, batch_threads, asked.repacked)
    print(json.dumps(engine.describe()), flush=True)
    for answer in answers(engine):
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
