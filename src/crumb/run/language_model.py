"""LanguageModel: what `crumb.load` returns. Generate, stream, chat, score and embed.

In: texts, tokens or messages. Out: frozen results with times, counts and memory. Any number of
threads may call; their requests share the steps of one engine.
Refuses what does not fit the memory, the context or the vocabulary.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar, Unpack, overload

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.errors import UsageError
from crumb.machine.memory import give_back_memory
from crumb.requests.chat_request import ChatRequest
from crumb.requests.generate_request import (
    GenerateOptions,
    GenerateRequest,
    Prompt,
    Sampling,
    make_request,
    plain_prompt,
    prompt_list,
)
from crumb.requests.reading_request import EmbedRequest, ScoreRequest, score_requests
from crumb.run.chat_sampling import read_chat_sampling
from crumb.run.consumers import (
    Consumer,
    Embedding,
    Floats,
    LogitsConsumer,
    ModelFacts,
    Request,
    Score,
    make_consumer,
)
from crumb.run.engine import Engine
from crumb.run.generation import Generation, TextPiece
from crumb.run.handle import Handle, Sink, no_pieces
from crumb.run.memory_plan import (
    EngineSettings,
    MemoryPlan,
)
from crumb.run.scheduler import MOST_WAITING, Scheduler
from crumb.run.source_texts import chat_template_of, start_token
from crumb.structure.chat_format import ChatFormat, ReplyPlan
from crumb.tokenizer.chat_template import ChatTemplate, Message
from crumb.tokenizer.tokenizer import Tokenizer, load_tokenizer

Value = TypeVar("Value")
Prompts = list[str] | list[Prompt] | list[list[int]] | tuple[str, ...]
Messages = Sequence[Message | Mapping[str, Any]]


class LanguageModel:
    """A model in memory, with its engine and tokenizer. Use it in a `with`, or close it."""

    def __init__(
        self, checkpoint: Checkpoint, settings: EngineSettings, most_waiting: int = MOST_WAITING
    ) -> None:
        """`most_waiting`: requests that may wait for their turn before `submit` refuses one."""
        begin = time.perf_counter()
        self.checkpoint = checkpoint
        self._start = start_token(checkpoint)
        self._engine: Engine | None = Engine(checkpoint, settings)
        self._scheduler: Scheduler | None = Scheduler(self._engine, most_waiting)
        # also when nobody closes it, or the program ends
        self._end_scheduler = weakref.finalize(self, self._scheduler.close)
        self.load_seconds = time.perf_counter() - begin

    @property
    def engine(self) -> Engine:
        """Raises: UsageError once the model is closed."""
        if self._engine is None:
            raise UsageError("this model is closed", where=self.checkpoint.path)
        return self._engine

    @property
    def scheduler(self) -> Scheduler:
        """Raises: UsageError once the model is closed."""
        if self._scheduler is None:
            raise UsageError("this model is closed", where=self.checkpoint.path)
        return self._scheduler

    @property
    def memory(self) -> MemoryPlan:
        return self.engine.memory

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.checkpoint.files)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        return chat_template_of(self.checkpoint)

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
        """Let threads and memory go. Requests that run or wait end as cancelled."""
        self._end_scheduler()
        self._engine = self._scheduler = None
        give_back_memory()

    @cached_property
    def chat_sampling(self) -> Sampling:
        """What generation_config.json says; greedy where it is silent. Raises: UsageError."""
        return read_chat_sampling(self.checkpoint.files)

    def tokens_of(self, prompt: Prompt) -> tuple[int, ...]:
        """A prompt's tokens. Raises: UsageError where there are none."""
        prompt = plain_prompt(prompt)
        tokens = tuple(self.tokenizer.encode(prompt)) if isinstance(prompt, str) else prompt
        begin = self.tokenizer.begin_token
        if not tokens and begin is None:
            raise UsageError("the prompt is empty", do="Give at least one token")
        return tokens if begin is None or tokens else (begin,)

    @overload
    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Generation: ...
    @overload
    def generate(self, prompt: Prompts, **options: Unpack[GenerateOptions]) -> list[Generation]: ...
    def generate(
        self, prompt: Prompt | Prompts, **options: Unpack[GenerateOptions]
    ) -> Generation | list[Generation]:
        """Continue a prompt, or each of a list of prompts together; a prompt is a text or tokens.

        Of a list, a prompt that fails ends alone: its generation has the error. A single one raises
        it. Raises: UsageError.
        """
        several = prompt_list(prompt)
        if several is not None:
            return self.run([make_request(each, **options) for each in several])
        return self._one(make_request(prompt, **options))  # type: ignore[arg-type]

    @overload
    def submit(
        self,
        request: GenerateRequest,
        *,
        id: str | None = None,
        wait: bool = False,
        sink: Sink | None = None,
    ) -> Handle[Generation]: ...
    @overload
    def submit(
        self,
        request: ScoreRequest,
        *,
        id: str | None = None,
        wait: bool = False,
        sink: Sink | None = None,
    ) -> Handle[Score]: ...
    @overload
    def submit(
        self,
        request: EmbedRequest,
        *,
        id: str | None = None,
        wait: bool = False,
        sink: Sink | None = None,
    ) -> Handle[Embedding]: ...
    def submit(
        self,
        request: Request,
        *,
        id: str | None = None,
        wait: bool = False,
        sink: Sink | None = None,
    ) -> Handle[Any]:
        """Begin a request as soon as there is room; its handle has the pieces and the result.

        `wait`: for a place in the queue where that is full. `sink`: told the pieces in place of
        who reads the handle, by the scheduler's thread. Raises: UsageError, QueueFull.
        """
        handle = self._handle(self._consumer(request), sink, id=id)
        self.scheduler.submit(handle, wait=wait)
        return handle

    def run(
        self,
        requests: Sequence[GenerateRequest],
        piece: Callable[[int, TextPiece], None] | None = None,
        cancelled: threading.Event | None = None,
    ) -> list[Generation]:
        """Run requests together; piece(index, piece) is told of each piece as it comes.

        Once `cancelled` is set, by any thread, they end where they are. A request that fails ends
        alone: its generation has the finish reason `error` and the error itself.
        Raises: UsageError for a request that cannot begin; then none has.
        """
        arrivals: SimpleQueue[tuple[int, TextPiece | None]] = SimpleQueue()

        def handle_of(index: int, request: GenerateRequest) -> Handle[Generation]:
            def sink(each: TextPiece | None) -> None:
                arrivals.put((index, each))

            to = no_pieces if piece is None else sink
            return self._handle(self._consumer(request), to, cancelled=cancelled)

        handles = [handle_of(*pair) for pair in enumerate(requests)]
        with self._submitted(handles):
            ended = len(handles) if piece is None else 0
            while piece is not None and ended < len(handles):
                index, each = arrivals.get()
                if each is None:
                    ended += 1
                else:
                    piece(index, each)
            outcomes = [handle.outcome() for handle in handles]
        return [outcome for outcome in outcomes if outcome is not None]

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Iterator[TextPiece]:
        """Pieces of text as they become certain. Stop reading to cancel.

        Raises: UsageError, and where it fails the request's error.
        """
        return self._pieces(self._handle(self._consumer(make_request(prompt, **options))))

    def _pieces(self, handle: Handle[Generation]) -> Iterator[TextPiece]:
        self.scheduler.submit(handle, wait=True)
        try:
            yield from handle
            if handle.error is not None:
                raise handle.error
        finally:
            handle.cancel()

    def chat_prompt(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[int, ...]:
        """Tokens of a conversation that the model is to answer. Raises: UsageError."""
        text = self.chat_template.render(messages, add_generation_prompt=True, tools=tools)
        return self._facts.reading.chat_tokens(text)

    def chat_request(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerateRequest:
        """The request that answers a conversation.

        Where no option speaks, tokens are chosen as the model's generation_config.json says, and
        the answer ends when the model ends it. Raises: UsageError.
        """
        prompt = self.chat_prompt(messages, tools)
        options.setdefault("max_tokens", None)
        return make_request(prompt, self.chat_sampling, **options)

    def plan_chat(self, asked: ChatRequest) -> tuple[GenerateRequest, ReplyPlan]:
        """A chat with tools, thoughts or a form: its request, and how the answer is read.

        Raises: UsageError, CheckpointError.
        """
        form = ChatFormat(self.chat_template.source(bool(asked.shown_tools)))
        messages, beginning = form.messages(asked), ""
        if asked.continues and self._start is not None:
            raise UsageError("this model continues no answer", do="Ask for the whole of it")
        if asked.continues:
            beginning = str(messages.pop().get("content") or "")
        text = self.chat_template.render(
            messages, tools=form.shown_tools(asked), variables=form.variables(asked)
        )
        text += beginning
        tokens = self._facts.reading.chat_tokens(text)
        plan = form.plan(asked, text, self.tokenizer)
        options: dict[str, Any] = {"max_tokens": None, **asked.options, **plan.options}
        return make_request(tokens, self.chat_sampling, **options), plan

    def chat(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """Answer a conversation, as `chat_request` says. Raises: UsageError."""
        return self._one(self.chat_request(messages, tools, **options))

    def stream_chat(
        self,
        messages: Messages,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[TextPiece]:
        """Answer a conversation piece by piece. Raises: UsageError."""
        consumer = self._consumer(self.chat_request(messages, tools, **options))
        return self._pieces(self._handle(consumer))

    @overload
    def score(self, texts: Prompt, target: Prompt | None = None, *, top: int = 0) -> Score: ...
    @overload
    def score(
        self, texts: Prompts, target: Prompts | None = None, *, top: int = 0
    ) -> list[Score]: ...
    def score(
        self, texts: Prompt | Prompts, target: Any = None, *, top: int = 0
    ) -> Score | list[Score]:
        """Log-probability of every token of a text, or of a target behind it; or of each of a list.

        A model with an encoder reads the text and scores the target, its end included; of a list of
        texts, each has its target. `top`: most likely tokens told with each. Raises: UsageError.
        """
        asked = score_requests(texts, target, top)
        scores = self._results([self._consumer(each) for each in asked])
        return scores if prompt_list(texts) is not None else scores[0]

    @overload
    def embed(self, texts: Prompt) -> Embedding: ...
    @overload
    def embed(self, texts: Prompts) -> list[Embedding]: ...
    def embed(self, texts: Prompt | Prompts) -> Embedding | list[Embedding]:
        """A vector for a text, or for each of a list: mean of its tokens' features, of length 1.

        Raises: UsageError.
        """
        embeddings: Embedding | list[Embedding] = self._of_each(texts, EmbedRequest)
        return embeddings

    def logits(self, text: Prompt) -> Floats:
        """Logits after every token of one text, or of tokens. Shapes: -> (tokens, vocabulary).

        All of them in memory at once. Raises: UsageError.
        """
        if self._start is not None:
            raise UsageError("this model has no logits of what it reads", do="Score a pair")
        consumer = LogitsConsumer(self.tokens_of(text), self.engine.plan.vocabulary)
        return self._results([consumer])[0]

    def _one(self, request: GenerateRequest) -> Generation:
        """One request; its error is raised."""
        (generation,) = self._results([self._consumer(request)])
        assert isinstance(generation, Generation), "of a generation"
        return generation

    def _of_each(self, prompts: Any, request: Callable[[Prompt], Request]) -> Any:
        """A single result for a single prompt, a list for a list."""
        several = prompt_list(prompts)
        texts = [prompts] if several is None else several
        results = self._results([self._consumer(request(each)) for each in texts])
        return results[0] if several is None else results

    def _results(self, consumers: Sequence[Consumer[Value]]) -> list[Value]:
        """What becomes of consumers together. Raises: the first error among them."""
        handles = [self._handle(consumer, no_pieces) for consumer in consumers]
        with self._submitted(handles):
            return [handle.result() for handle in handles]

    @contextmanager
    def _submitted(self, handles: Sequence[Handle[Any]]) -> Iterator[None]:
        """Requests at work inside the `with`; one that is left early, by an error, cancels them."""
        scheduler = self.scheduler
        try:
            scheduler.submit(*handles, wait=True)
            yield
        finally:
            for handle in handles:
                handle.cancel()

    @cached_property
    def _facts(self) -> ModelFacts:
        engine = self.engine
        return ModelFacts(
            self.tokenizer, engine.plan.vocabulary, engine.context_tokens, self._start
        )

    def _consumer(self, request: Request) -> Consumer[Any]:
        return make_consumer(request, self.tokens_of, self._facts)

    def _handle(
        self,
        consumer: Consumer[Value],
        sink: Sink | None = None,
        *,
        id: str | None = None,
        cancelled: threading.Event | None = None,
    ) -> Handle[Value]:
        """Raises: UsageError for a prompt that no sequence can begin with."""
        self.engine.check_source(consumer.source)
        self.engine.check_prompt(consumer.prompt)
        handle: Handle[Value] = Handle(consumer, owner=self, id=id, sink=sink, cancelled=cancelled)
        handle.stored = self.engine.stored_pages(consumer.prompt[: consumer.first_row + 1])
        return handle
