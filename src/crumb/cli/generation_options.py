"""Options that several verbs share: how an engine is built, how text is chosen, what is told of it.

In: words of the command line. Out: EngineSettings, requests, and the lines on stderr that say what
memory is planned and how fast it went. Refuses biases and prompts that cannot be.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Unpack

import msgspec
from cyclopts import Parameter

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.converted_cache import with_converted
from crumb.cli.option_groups import ENGINE, SAMPLING
from crumb.cli.output import bytes_text, log
from crumb.cli.whole_number import OptionalWhole
from crumb.errors import UsageError
from crumb.machine.memory import available_bytes
from crumb.machine.processors import processors
from crumb.requests.generate_request import (
    GenerateOptions,
    GenerateRequest,
    Sampling,
    make_request,
)
from crumb.run.generation import Generation
from crumb.run.load import engine_settings
from crumb.run.memory_plan import (
    ActivationKind,
    CacheKind,
    EngineSettings,
    MemoryPlan,
    WeightsKind,
)


@ENGINE
@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How the engine is built.

    Attributes:
        context: most tokens of a sequence, prompt included; by default 4096 or what the model has.
        cache: how keys and values are kept.
        activations: what quantized weights are multiplied with; f32 is slower and exact.
        weights: mapped runs them in the file's own pages; copied takes memory of its own, which is
            faster where the system has huge pages.
        threads: how many threads; by default one for each processor.
        cache_converted: keep what another container's matrices become in a file beside the model:
            the next start maps it.
        cache_dir: a directory where what was read of conversations stays for the next start.
    """

    context: OptionalWhole = None
    cache: CacheKind = CacheKind.F16
    activations: ActivationKind = ActivationKind.INT8
    weights: WeightsKind = WeightsKind.MAPPED
    threads: OptionalWhole = None
    cache_converted: Annotated[bool, Parameter(negative=())] = False
    cache_dir: Path | None = None

    def prepared(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint as the engine is to run it."""
        return with_converted(checkpoint) if self.cache_converted else checkpoint

    def settings(self, checkpoint: Checkpoint, sequences: int = 1) -> EngineSettings:
        """For this model. Raises: UsageError."""
        settings = engine_settings(
            checkpoint.plan, self.context, sequences, self.cache, self.activations
        )
        return replace(
            settings, threads=self.threads, weights=self.weights, cache_dir=self.cache_dir
        )


@SAMPLING
@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How text is chosen and where it ends.

    Attributes:
        max_tokens: end after so many tokens; by default 256, in a chat when the answer ends.
        temperature: 0 takes the most likely token; 1 draws from the model's own distribution. In a
            chat this and the next ones are by default what the model's own files say.
        top_k: draw from so many most likely tokens; 0 is all.
        top_p: draw from the fewest most likely tokens that hold this probability together.
        min_p: draw from tokens with at least this share of the most likely one's probability.
        repetition_penalty: divides the score of tokens that were there, prompt included; 1 is none.
        frequency_penalty: taken from a token's score for each time it was generated.
        presence_penalty: taken once from the score of a token that was generated.
        seed: of the draws; the same seed gives the same text. By default it is drawn, and told.
        stop: a text that ends the generation and is not shown; repeatable.
        logit_bias: added to a token's score, as TOKEN=VALUE with the token's number; repeatable.
        ignore_end: go on after the model's own end of text.
        json_schema: a file with a JSON schema that the text is held to.
        grammar: a file with a grammar of Lark, as llguidance reads it, that the text is held to.
        regex: a regular expression that the whole text is held to.
        speculate: guess tokens from the text so far where that pays; the text is the same.
    """

    max_tokens: OptionalWhole = None
    temperature: float | None = None
    top_k: OptionalWhole = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: OptionalWhole = None
    stop: Annotated[tuple[str, ...], Parameter(negative=())] = ()
    logit_bias: Annotated[tuple[str, ...], Parameter(negative=())] = ()
    ignore_end: Annotated[bool, Parameter(negative=())] = False
    json_schema: Path | None = None
    grammar: Path | None = None
    regex: str | None = None
    speculate: bool = True

    def request(
        self,
        prompt: str | Sequence[int],
        defaults: Sampling | None = None,
        **more: Unpack[GenerateOptions],
    ) -> GenerateRequest:
        """What is asked after a prompt; `defaults` and `more` hold where no option was given.

        Raises: UsageError.
        """
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        if self.json_schema is not None:
            values["json_schema"] = read_schema(self.json_schema)
        if self.grammar is not None:
            values["grammar"] = self.grammar.read_text(encoding="utf-8")
        values["logit_bias"] = dict(map(parse_bias, self.logit_bias))
        options = {name: value for name, value in values.items() if value not in (None, (), {})}
        merged: dict[str, Any] = {**more, **options}
        return make_request(prompt, defaults, **merged)


ENGINE_DEFAULTS, TEXT_DEFAULTS = EngineOptions(), TextOptions()


def parse_bias(word: str) -> tuple[int, float]:
    """A token and its bias. Raises: UsageError."""
    token, equals, value = word.partition("=")
    try:
        if equals and token.strip().isdecimal():
            return int(token), float(value)
    except ValueError:
        pass
    raise UsageError(
        "a bias that cannot be read", where="--logit-bias", expected="TOKEN=VALUE", found=word[:80]
    )


def read_schema(path: Path) -> Any:
    """A file's JSON. Raises: UsageError where it is none."""
    try:
        return msgspec.json.decode(path.read_bytes())
    except msgspec.DecodeError as error:
        raise UsageError(f"no JSON: {error}", where=path) from error


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt itself, a file's text, or what comes on stdin. Raises: UsageError."""
    if file is not None and prompt is not None:
        raise UsageError("two prompts", expected="PROMPT or --file", found="both")
    if file is not None:
        return file.read_text(encoding="utf-8")
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise UsageError("there is no prompt", do="Give PROMPT, --file, or a text on stdin")
    return sys.stdin.read()


def memory_line(plan: MemoryPlan) -> str:
    """The memory that an engine takes, and its parts."""
    buffers = plan.buffer_bytes + plan.scratch_bytes + plan.table_bytes
    process = f", Python and tokenizer {bytes_text(plan.process_bytes)}"
    return (
        f"needs {bytes_text(plan.total_bytes)} of memory: weights "
        f"{bytes_text(plan.weights_bytes)}, cache {bytes_text(plan.cache_bytes)}, "
        f"buffers {bytes_text(buffers)}{process if plan.process_bytes else ''}"
    )


def memory_record(plan: MemoryPlan, settings: EngineSettings) -> dict[str, Any]:
    """The same for programs."""
    return {
        "total_bytes": plan.total_bytes,
        "weights_bytes": plan.weights_bytes,
        "cache_bytes": plan.cache_bytes,
        "buffer_bytes": plan.buffer_bytes,
        "scratch_bytes": plan.scratch_bytes,
        "table_bytes": plan.table_bytes,
        "process_bytes": plan.process_bytes,
        "available_bytes": available_bytes(),
        "context_tokens": settings.context_tokens,
        "threads": settings.thread_count(),
        "cache": settings.cache.value,
    }


def timing_line(generation: Generation) -> str:
    """Speeds and memory of a generation."""
    timings = generation.timings
    read = generation.prompt_tokens - generation.cached_tokens
    seed = "" if generation.seed is None else f"seed {generation.seed}; "
    cached = f" ({generation.cached_tokens} more were cached)" if generation.cached_tokens else ""
    return (
        f"prompt {read} tokens{cached}, {timings.prompt_tokens_per_second:.1f} tokens/s; "
        f"first token after {1000 * timings.prompt_seconds:.0f} ms; "
        f"generated {generation.completion_tokens} tokens, "
        f"{timings.decode_tokens_per_second:.1f} tokens/s; {seed}"
        f"peak memory {bytes_text(generation.peak_memory_bytes)}"
    )


def log_plan(plan: MemoryPlan, settings: EngineSettings) -> None:
    """On stderr: the memory, and whether the threads are too many."""
    log(memory_line(plan))
    threads, most = settings.thread_count(), processors()
    if threads > most:
        log(f"{threads} threads share {most} processors: --threads {most} will be faster")
