"""`crumb generate`: continue a text.

In: a model and a prompt. Out: the text on stdout as it comes, memory and speeds on stderr; with
--json the whole generation at its end. Ctrl-C ends the text where it is, with exit code 130.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.huggingface.hub import locate
from crumb.checkpoints.opening import open_checkpoint
from crumb.cli.generation_options import (
    ENGINE_DEFAULTS,
    TEXT_DEFAULTS,
    EngineOptions,
    TextOptions,
    log_plan,
    memory_line,
    memory_record,
    read_prompt,
    timing_line,
)
from crumb.cli.interruption import interruption
from crumb.cli.option_groups import ONE_WAY, OUTPUT, PROMPT
from crumb.cli.output import bytes_text, log, print_json
from crumb.cli.whole_number import OptionalWhole
from crumb.errors import UsageError
from crumb.machine.memory import resident_bytes
from crumb.run.generation import TextPiece
from crumb.run.language_model import LanguageModel
from crumb.run.memory_plan import EngineSettings, check_fits, process_bytes
from crumb.run.program import plan_engine
from crumb.tokenizer.tokenizer import load_tokenizer


def parse_prompt(_: Any, tokens: Sequence[Token]) -> str:
    """A prompt may be - or begin with it, but not look like an option. Raises: ValueError."""
    word = tokens[0].value
    if word.startswith("--"):
        raise ValueError(f"no option {word[:40]} here; such a prompt can come from --file")
    return word


def generate(
    model: str,
    prompt: Annotated[
        str | None, Parameter(allow_leading_hyphen=True, converter=parse_prompt)
    ] = None,
    /,
    *,
    file: Annotated[Path | None, PROMPT] = None,
    text: TextOptions = TEXT_DEFAULTS,
    engine: EngineOptions = ENGINE_DEFAULTS,
    logprobs: Annotated[OptionalWhole, OUTPUT] = None,
    prompt_logprobs: Annotated[bool, OUTPUT, ONE_WAY] = False,
    echo: Annotated[bool, OUTPUT, ONE_WAY] = False,
    dry_run: Annotated[bool, OUTPUT, ONE_WAY] = False,
    json: Annotated[bool, OUTPUT, ONE_WAY] = False,
) -> None:
    """Continue a text; it streams to stdout as it comes.

    Args:
        model: directory, .gguf file, org/name, or org/name@revision.
        prompt: the text to continue; - reads it from stdin, as does none where stdin is a pipe.
        file: a file whose text is the prompt.
        logprobs: with --json, each token's logprob and those of so many most likely ones.
        prompt_logprobs: with --json, also the logprobs of the prompt's tokens.
        echo: print the prompt before its continuation.
        dry_run: print the memory that is needed and what is available; exit 3 if it does not fit.
        json: print the whole generation as JSON at its end, and nothing before.
    """
    if (logprobs is not None or prompt_logprobs) and not json:
        raise UsageError("logprobs are shown with --json alone", do="Add --json")
    checkpoint = open_checkpoint(locate(model))
    settings = engine.settings(checkpoint)
    if dry_run:
        show_plan(checkpoint, settings, json)
        return
    words = read_prompt(prompt, file)
    request = text.request(words, logprobs=logprobs, prompt_logprobs=prompt_logprobs)
    out, resident = Stream(shown=not json), resident_bytes()
    with (
        LanguageModel(engine.prepared(checkpoint), settings) as loaded,
        interruption() as interrupted,
    ):
        process = process_bytes(checkpoint.plan.vocabulary, resident, lambda: loaded.tokenizer)
        plan = replace(loaded.memory, process_bytes=process)
        log_plan(plan, settings)
        if echo:
            out.write(words)
        (generation,) = loaded.run([request], out.piece, interrupted)
    out.end()
    if generation.error is not None:
        raise generation.error
    if json:
        print_json(generation)
    log(timing_line(generation))
    if interrupted.is_set():
        raise KeyboardInterrupt


def show_plan(checkpoint: Checkpoint, settings: EngineSettings, as_json: bool) -> None:
    """The memory that a run takes, and what there is. Raises: DoesNotFit."""
    resident, plan = resident_bytes(), plan_engine(checkpoint, settings)
    process = process_bytes(
        checkpoint.plan.vocabulary, resident, lambda: load_tokenizer(checkpoint.files)
    )
    plan = replace(plan, process_bytes=process)
    record = memory_record(plan, settings)
    available = bytes_text(record["available_bytes"])
    print_json(record) if as_json else print(f"{memory_line(plan)}; {available} available")
    check_fits(plan, checkpoint.path)


class Stream:
    """Text on stdout as it comes."""

    def __init__(self, shown: bool = True) -> None:
        self._shown, self._last = shown, "\n"

    def piece(self, index: int, piece: TextPiece) -> None:
        """What LanguageModel.run is given."""
        del index
        self.write(piece.text)

    def write(self, text: str) -> None:
        """Some text, shown at once."""
        if self._shown and text:
            self._last = text[-1]
            sys.stdout.write(text)
            sys.stdout.flush()

    def end(self) -> None:
        """End the last line if the text has not."""
        if self._last != "\n":
            self.write("\n")
