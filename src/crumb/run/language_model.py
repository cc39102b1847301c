"""LanguageModel: what `crumb.load` returns. Generate, stream, chat, score and embed.

In: texts, tokens or messages. Out: frozen results with times, counts and memory. Any number of
threads may call; each call is a batch of its own, and steps take turns.
Refuses what does not fit the memory, the context or the vocabulary.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.huggingface.hub import locate
from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import UsageError
from crumb.machine.memory import peak_memory_bytes
from crumb.run.batch import Running, run_batch
from crumb.run.engine import Engine, Part, Wanted
from crumb.run.generation import (
    GenerateRequest,
    Generation,
    Piece,
    TextState,
    TokenLogprob,
    prompt_logprobs,
)
from crumb.run.memory_plan import (
    ActivationKind,
    CacheKind,
    EngineSettings,
    MemoryPlan,
    WeightsKind,
    chosen_kind,
)
from crumb.run.sampling import Sampling
from crumb.tokenizer.chat_template import ChatTemplate, Message, load_chat_template
from crumb.tokenizer.tokenizer import Tokenizer, load_tokenizer

Floats = NDArray[np.float32]
Prompt = str | Sequence[int]
Messages = Sequence[Message | Mapping[str, Any]]

DEFAULT_CONTEXT_TOKENS = 4096
"""Context of a loaded model that may have more positions; the cache is planned for it."""

DEFAULT_LOGITS_ROWS = 16


@dataclass(frozen=True)
class Score:
    """How likely a model finds a text."""

    tokens: tuple[TokenLogprob, ...]
    logprob: float  # sum over all tokens but the first
    perplexity: float  # exp of minus the mean
    seconds: float


@dataclass(frozen=True)
class Embedding:
    """A text as one vector: the mean over its tokens of what the head reads, of length 1."""

    vector: Floats  # (hidden,)
    tokens: int


class LanguageModel:
    """A model in memory, with its engine and tokenizer. Use it in a `with`, or close it."""

    def __init__(self, checkpoint: Checkpoint, settings: EngineSettings) -> None:
        begin = time.perf_counter()
        self.checkpoint = checkpoint
        self._engine: Engine | None = Engine(checkpoint, settings)
        self.load_seconds = time.perf_counter() - begin

    @property
    def engine(self) -> Engine:
        """Raises: UsageError once the model is closed."""
        if self._engine is None:
            raise UsageError("this model is closed", where=self.checkpoint.path)
        return self._engine

    @property
    def memory(self) -> MemoryPlan:
        return self.engine.memory

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.checkpoint.files)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        return load_chat_template(self.checkpoint.files)

    def __enter__(self) -> LanguageModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let threads and memory go. Calls that run in other threads finish first."""
        self._engine = None

    def tokens_of(self, prompt: Prompt) -> tuple[int, ...]:
        """A prompt's tokens. Raises: UsageError where there are none."""
        tokens = tuple(self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
        if not tokens:
            begin = self.tokenizer.begin_token
            if begin is None:
                raise UsageError("the prompt is empty", do="Give at least one token")
            tokens = (begin,)
        return tokens

    @overload
    def generate(self, prompt: Prompt, **settings: Any) -> Generation: ...
    @overload
    def generate(self, prompt: list[str], **settings: Any) -> list[Generation]: ...
    def generate(
        self, prompt: Prompt | list[str], **settings: Any
    ) -> Generation | list[Generation]:
        """Continue a prompt, or each of a list of prompts together.

        Settings are the fields of GenerateRequest and of Sampling, such as max_tokens,
        temperature, top_p, stop, logprobs. Raises: UsageError.
        """
        if isinstance(prompt, list) and all(isinstance(each, str) for each in prompt):
            return self.run([make_request(str(each), **settings) for each in prompt])
        return self.run([make_request(cast(Prompt, prompt), **settings)])[0]

    def run(
        self,
        requests: Sequence[GenerateRequest],
        piece: Callable[[int, Piece], None] = lambda index, piece: None,
        cancelled: threading.Event | None = None,
    ) -> list[Generation]:
        """Run requests together; piece(index, piece) is told of each piece as it comes.

        Once `cancelled` is set, by any thread, they end where they are.
        """
        event = cancelled or threading.Event()
        running = [self._running(request, event) for request in requests]
        for index, each in run_batch(self.engine, running):
            piece(index, each)
        return [self._result(*pair) for pair in zip(requests, running, strict=True)]

    def stream(self, prompt: Prompt, **settings: Any) -> Iterator[Piece]:
        """Pieces of text as they become certain. Stop reading to cancel. Raises: UsageError."""
        running = self._running(make_request(prompt, **settings), threading.Event())
        return (piece for _, piece in run_batch(self.engine, [running]))

    def chat_prompt(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[int, ...]:
        """Tokens of a conversation that the model is to answer. Raises: UsageError."""
        text = self.chat_template.render(messages, add_generation_prompt=True, tools=tools)
        return tuple(self.tokenizer.encode(text, special=False))

    def chat(self, messages: Messages, **settings: Any) -> Generation:
        """Answer a conversation. Settings as for generate. Raises: UsageError."""
        return self.run([make_request(self.chat_prompt(messages), **settings)])[0]

    def stream_chat(self, messages: Messages, **settings: Any) -> Iterator[Piece]:
        """Answer a conversation piece by piece."""
        return self.stream(self.chat_prompt(messages), **settings)

    def score(self, texts: Sequence[str], top: int = 0) -> list[Score]:
        """Log-probability of every token of each text. Raises: UsageError."""
        return [self._score(text, top) for text in texts]

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        """A vector for each text: mean of its tokens' features, scaled to length 1."""
        return [self._embed(text) for text in texts]

    def logits(self, tokens: Sequence[int]) -> Floats:
        """Logits after every token of one text. Shapes: -> (tokens, vocabulary)."""
        engine = self.engine
        at_once = min(engine.settings.step_tokens, engine.logits_rows)
        with engine.seats.one():
            sequence = engine.begin(tokens, reuse=False)
            out = np.empty((len(tokens), engine.plan.vocabulary), np.float32)
            try:
                for begin in range(0, len(tokens), at_once):
                    part = Part(sequence, tokens[begin : begin + at_once], Wanted.ALL)
                    with engine.stepped([part]) as rows:
                        out[begin : begin + len(part.tokens)] = rows
            finally:
                engine.end(sequence)
        return out

    def _running(self, request: GenerateRequest, cancelled: threading.Event) -> Running:
        prompt = self.tokens_of(request.prompt)
        vocabulary, context = self.engine.plan.vocabulary, self.engine.context_tokens
        room = max(context - len(prompt) + 1, 0)  # the last token need not be fed
        state = TextState(request, prompt, self.tokenizer, vocabulary, room)
        return Running(state, prompt, request.prompt_logprobs, cancelled=cancelled)

    def _result(self, request: GenerateRequest, running: Running) -> Generation:
        measured = None
        if request.prompt_logprobs and not running.reading:
            rows = np.concatenate(running.prompt_logits)
            measured = prompt_logprobs(self.tokenizer, running.prompt, rows, request.logprobs or 0)
        return running.state.result(
            timings=running.timings(),
            cached_tokens=running.cached_tokens,
            peak_memory_bytes=peak_memory_bytes(),
            prompt_logprobs=measured,
        )

    def _score(self, text: str, top: int) -> Score:
        begin = time.perf_counter()
        tokens = self.tokens_of(text)
        measured = prompt_logprobs(self.tokenizer, tokens, self.logits(tokens), top)
        total = sum(each.logprob for each in measured if each.logprob is not None)
        mean = total / max(len(tokens) - 1, 1)
        return Score(measured, total, float(np.exp(-mean)), time.perf_counter() - begin)

    def _embed(self, text: str) -> Embedding:
        engine, tokens = self.engine, self.tokens_of(text)
        at_once = min(engine.settings.step_tokens, engine.logits_rows)
        total = np.zeros(0)
        with engine.seats.one():
            sequence = engine.begin(tokens, reuse=False)
            try:
                for begin in range(0, len(tokens), at_once):
                    part = Part(sequence, tokens[begin : begin + at_once], Wanted.ALL)
                    summed = engine.features([part]).astype(np.float64).sum(axis=0)
                    total = summed if begin == 0 else total + summed
            finally:
                engine.end(sequence)
        length = float(np.linalg.norm(total)) or 1.0
        return Embedding((total / length).astype(np.float32), len(tokens))


SAMPLING = frozenset(Sampling.__dataclass_fields__)


def make_request(prompt: Prompt, **settings: Any) -> GenerateRequest:
    """A request from fields of GenerateRequest and Sampling together. Raises: UsageError."""
    chosen = {name: value for name, value in settings.items() if name in SAMPLING}
    others = {name: value for name, value in settings.items() if name not in SAMPLING}
    unknown = sorted(others.keys() - GenerateRequest.__dataclass_fields__.keys())
    if unknown:
        raise UsageError("no such setting of a generation", found=unknown[0])
    if chosen:
        others["sampling"] = replace(others.get("sampling", Sampling()), **chosen)
    if isinstance(others.get("stop"), str):
        others["stop"] = (others["stop"],)
    given = prompt if isinstance(prompt, str) else tuple(prompt)
    return GenerateRequest(given, **others)


def load(
    model: str | Path,
    *,
    context_tokens: int | None = None,
    sequences: int = 1,
    cache: CacheKind | str = CacheKind.F16,
    activations: ActivationKind | str = ActivationKind.INT8,
    weights: WeightsKind | str = WeightsKind.MAPPED,
    threads: int | None = None,
) -> LanguageModel:
    """Load a model: a directory, org/name, or org/name@revision.

    context_tokens: of each sequence; sequences: how many run at once; cache: f16, int8 or f32;
    activations: int8, or f32 for exact products; weights: mapped, or copied into memory of the
    process; threads: all processors by default.
    Raises: ModelNotFound, CheckpointError, UsageError, DoesNotFit.
    """
    checkpoint = open_checkpoint(locate(str(model)))
    settings = engine_settings(
        checkpoint.plan,
        context_tokens,
        sequences,
        chosen_kind(CacheKind, cache, "cache"),
        chosen_kind(ActivationKind, activations, "activations"),
        chosen_kind(WeightsKind, weights, "weights"),
    )
    return LanguageModel(checkpoint, replace(settings, threads=threads))


def engine_settings(
    plan: Plan,
    context_tokens: int | None = None,
    sequences: int = 1,
    cache: CacheKind = CacheKind.F16,
    activations: ActivationKind = ActivationKind.INT8,
    weights: WeightsKind = WeightsKind.MAPPED,
) -> EngineSettings:
    """How the engine of a loaded model is built, where not told otherwise. Raises: UsageError."""
    default = min(DEFAULT_CONTEXT_TOKENS, plan.max_positions)
    settings = EngineSettings(
        context_tokens=default if context_tokens is None else context_tokens,
        sequences=sequences,
        cache=cache,
        activations=activations,
        weights=weights,
    )
    return replace(settings, logits_rows=max(sequences, DEFAULT_LOGITS_ROWS))
