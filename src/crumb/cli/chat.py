"""`crumb chat`: talk with a model in the terminal.

In: turns and commands from stdin. Out: answers on stdout as they come; everything else on stderr.
The history stays in the cache, so a turn reads what is new. From a pipe, each line is a turn and
the first error ends the chat. Refuses models without a chat template.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from crumb.checkpoints.huggingface.hub import locate
from crumb.checkpoints.opening import open_checkpoint
from crumb.cli.conversation import Answer, Conversation, Turns
from crumb.cli.generate import Stream
from crumb.cli.generation_options import (
    ENGINE_DEFAULTS,
    TEXT_DEFAULTS,
    EngineOptions,
    TextOptions,
    log_plan,
)
from crumb.cli.interruption import interruption
from crumb.cli.option_groups import ACCESS, PROMPT
from crumb.cli.output import log, log_dim
from crumb.cli.remote_conversation import RemoteConversation
from crumb.cli.small_models import suggestion
from crumb.cli.turn_reader import TurnReader, line_history, stdin_line
from crumb.errors import CrumbError, UsageError
from crumb.machine.memory import resident_bytes
from crumb.run.language_model import LanguageModel
from crumb.run.memory_plan import process_bytes
from crumb.run.source_texts import chat_template_of

KEY_VARIABLES = ["CRUMB_API_KEY", "OPENAI_API_KEY"]


def chat(
    model: str | None = None,
    /,
    *,
    url: Annotated[str | None, ACCESS] = None,
    api_key: Annotated[str | None, ACCESS, Parameter(env_var=KEY_VARIABLES)] = None,
    system: Annotated[str | None, PROMPT] = None,
    text: TextOptions = TEXT_DEFAULTS,
    engine: EngineOptions = ENGINE_DEFAULTS,
) -> None:
    """Talk with a model; /help lists what else can be typed.

    Args:
        model: directory, .gguf file, org/name, or org/name@revision; with --url a name there.
        url: the address of a server that answers OpenAI's clients, in place of a model here.
        api_key: the key that the server wants.
        system: a message before the chat that tells the model how to answer.
    """
    if url is not None:
        text.request("")  # refuses bad settings before the server is asked
        remote = RemoteConversation(url, api_key, model, text, system)
        log_dim(remote.about())
        with line_history():
            Chat(remote, sys.stdin.isatty()).run()
        return
    if model is None:
        raise UsageError(f"{suggestion('chat')} See `crumb --help`.")
    checkpoint = open_checkpoint(locate(model))
    try:
        chat_template_of(checkpoint)
    except UsageError as error:
        raise UsageError(
            error.what,
            where=error.where,
            do=f"`crumb generate {model}` continues a text with any model",
        ) from error
    text.request("")  # refuses bad settings before the model is loaded
    resident = resident_bytes()
    with (
        LanguageModel(engine.prepared(checkpoint), engine.settings(checkpoint)) as loaded,
        line_history(),
    ):
        vocabulary = loaded.checkpoint.plan.vocabulary
        process = process_bytes(vocabulary, resident, lambda: loaded.tokenizer)
        log_plan(replace(loaded.memory, process_bytes=process), loaded.engine.settings)
        Chat(Conversation(loaded, text, system), sys.stdin.isatty()).run()


class Chat:
    """The loop of a chat."""

    def __init__(self, conversation: Turns, interactive: bool) -> None:
        self.conversation, self._interactive = conversation, interactive
        self._reader = TurnReader(stdin_line)
        self._warned = False  # the last Ctrl-C has been answered with how to quit

    def run(self) -> None:
        """Until /quit or the end of input."""
        if self._interactive:
            log_dim("/help lists the commands; /quit or Ctrl-D ends the chat")
        while True:
            try:
                if not self._turn():
                    return
            except CrumbError as error:
                if not self._interactive:
                    raise
                log(f"crumb: {error}")
            except OSError as error:
                if not self._interactive or isinstance(error, BrokenPipeError):
                    raise
                log(f"crumb: {error.filename or 'the operating system'}: {error.strerror}")

    def _turn(self) -> bool:
        """One turn or command; whether another may follow."""
        try:
            words = self._reader.read()
        except EOFError:
            return False
        except KeyboardInterrupt:
            if self._warned or not self._interactive:
                raise
            self._warned = True
            log("\nthe line is gone; Ctrl-C again or /quit ends the chat")
            return True
        self._warned = False
        if not words.strip():
            return True
        if words.startswith("/"):
            name, _, rest = words[1:].partition(" ")
            command = COMMANDS.get(name)
            if command is None:
                raise UsageError("no such command", found=f"/{name[:40]}", do="See /help")
            return command[0](self, rest.strip())
        out = Stream()
        with interruption() as cancelled:
            answer = self.conversation.answer(words, out.piece, cancelled)
        self.tell(answer, out)
        return True

    def tell(self, answer: Answer, out: Stream) -> None:
        """What is said after an answer."""
        out.end()
        generation, context = answer.generation, self.conversation.context_tokens
        if answer.dropped_turns:
            gone = answer.dropped_turns
            log(f"the context is full: oldest turns dropped: {gone}; /new begins anew")
        if answer.is_full:
            log("the context is full: the answer ends here; the next turn drops the oldest")
        if generation.finish_reason == "cancelled":
            fate = "what was said stays in the chat" if generation.text else "nothing was said"
            log(f"cancelled; {fate}")
        used = generation.prompt_tokens + generation.completion_tokens
        log_dim(
            f"{generation.timings.decode_tokens_per_second:.1f} tokens/s, "
            f"read {generation.prompt_tokens - generation.cached_tokens} tokens, "
            + (f"context {used} of {context}" if context else f"context {used}")
        )

    def help(self, rest: str) -> bool:
        """List the commands."""
        del rest
        for name, (_, about) in COMMANDS.items():
            log(f"  /{name:<7} {about}")
        log('A line that ends with \\ goes on in the next; """ begins and ends several lines.')
        return True

    def new(self, rest: str) -> bool:
        """Forget everything but the system message."""
        del rest
        self.conversation.turns.clear()
        log_dim("a new chat")
        return True

    def system(self, rest: str) -> bool:
        """Change the system message, or remove it."""
        self.conversation.system = rest or None
        log_dim("the system message is set" if rest else "there is no system message now")
        return True

    def save(self, rest: str) -> bool:
        """Write the chat to a file."""
        self.conversation.save(_path(rest))
        log_dim(f"{len(self.conversation.turns)} messages written to {rest}")
        return True

    def load(self, rest: str) -> bool:
        """Go on with a chat from a file."""
        self.conversation.load(_path(rest))
        log_dim(f"{len(self.conversation.turns)} messages read from {rest}")
        return True

    def set(self, rest: str) -> bool:
        """Change a setting, or show all."""
        name, _, value = rest.partition(" ")
        if name:
            self.conversation.text = changed(self.conversation.text, name, value.strip())
        for field in fields(TextOptions):
            if name in ("", field.name.replace("_", "-"), field.name):
                log_dim(f"{field.name} {getattr(self.conversation.text, field.name)}")
        return True

    def stats(self, rest: str) -> bool:
        """Speed, memory and context."""
        del rest
        chat = self.conversation
        seconds = chat.decode_seconds
        speed = chat.generated_tokens / seconds if seconds > 0 else 0.0
        log(f"generated {chat.generated_tokens} tokens, {speed:.1f} tokens/s")
        if chat.last is not None:
            last = chat.last
            log(
                f"last prompt {last.prompt_tokens} tokens, {last.cached_tokens} of them cached, "
                f"read in {last.timings.prompt_seconds:.2f} s"
            )
        log(chat.about())
        return True

    def retry(self, rest: str) -> bool:
        """Answer the last message again."""
        del rest
        said, own = self.conversation.text.temperature, self.conversation.temperature
        if (own if said is None else said) == 0:
            log("temperature 0 gives the same answer; /set temperature 0.7 lets it differ")
        out = Stream()
        with interruption() as cancelled:
            answer = self.conversation.retry(out.piece, cancelled)
        self.tell(answer, out)
        return True

    def undo(self, rest: str) -> bool:
        """Take the last turn back."""
        del rest
        self.conversation.undo()
        log_dim(f"{len(self.conversation.turns)} messages remain")
        return True

    def quit(self, rest: str) -> bool:
        """End the chat."""
        del rest
        return False


COMMANDS: dict[str, tuple[Callable[[Chat, str], bool], str]] = {
    "help": (Chat.help, "list the commands"),
    "new": (Chat.new, "forget the chat but for the system message"),
    "system": (Chat.system, "TEXT: set the system message; nothing removes it"),
    "save": (Chat.save, "FILE: write the chat as JSON"),
    "load": (Chat.load, "FILE: go on with such a chat"),
    "set": (Chat.set, "NAME VALUE: change a setting such as temperature; nothing shows all"),
    "stats": (Chat.stats, "speed, memory and context so far"),
    "retry": (Chat.retry, "answer the last message again, with the next seed"),
    "undo": (Chat.undo, "take the last turn back"),
    "quit": (Chat.quit, "end the chat"),
}
"""Command -> what it does and its line of /help; each gives whether the chat goes on."""


def _flag(value: str) -> bool:
    return {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}[value]


def _words(value: str) -> tuple[str, ...]:
    return (value,) if value else ()


PARSERS: dict[str, Callable[[str], Any]] = {
    field.name: {"OptionalWhole": int, "float | None": float}.get(str(field.type), _words)
    for field in fields(TextOptions)
} | {"ignore_end": _flag}
"""How the value of each setting is read, from the types of TextOptions."""


def changed(text: TextOptions, name: str, value: str) -> TextOptions:
    """The settings with one of them changed; `none` gives its default. Raises: UsageError."""
    field = name.replace("-", "_")
    if field not in PARSERS:
        raise UsageError("no such setting", expected=f"one of {', '.join(PARSERS)}", found=name)
    try:
        parsed = getattr(TEXT_DEFAULTS, field) if value == "none" else PARSERS[field](value)
    except (KeyError, ValueError) as error:
        raise UsageError("a value that cannot be read", where=field, found=value[:80]) from error
    new = replace(text, **{field: parsed})
    new.request("")  # refuses what is out of range
    return new


def _path(name: str) -> Path:
    if not name:
        raise UsageError("which file?", do="Give its name after the command")
    return Path(name).expanduser()
