"""A chat's turns: what was said, what of it fits the context, and what the model answers.

In: who answers (a loaded model, or a server), settings of the text, messages. Out: answers; files
of messages. When the context of a loaded model is full the oldest turns go, never the system
message, and enough of them that the next turns need not read everything again.
Refuses a message that is longer than the context.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from crumb.cli.generation_options import TextOptions, memory_line
from crumb.cli.output import bytes_text
from crumb.errors import UsageError
from crumb.machine.memory import peak_memory_bytes
from crumb.run.generation import FinishReason, Generation, TextPiece
from crumb.run.language_model import LanguageModel
from crumb.tokenizer.chat_template import Message

LEAST_ANSWER_TOKENS = 64
"""Room for an answer without which the oldest turns go."""

FREED_SHARE = 4
"""One part in so many of the context is free once turns have gone."""

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"


@dataclass(frozen=True)
class Answer:
    """What became of a turn."""

    generation: Generation
    dropped_turns: int = 0  # the oldest, that no longer fitted
    is_full: bool = False  # the answer ended because the context did


PieceListener = Callable[[int, TextPiece], None]


@dataclass
class Turns:
    """Messages, and who answers them."""

    text: TextOptions
    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    retries: int = 0  # of the last turn; each draws with another seed
    last: Generation | None = None
    generated_tokens: int = 0
    decode_seconds: float = 0.0

    def reply(self, text: TextOptions, piece: PieceListener, cancelled: threading.Event) -> Answer:
        """What is answered to the messages. Raises: UsageError, CrumbError."""
        raise NotImplementedError

    @property
    def context_tokens(self) -> int | None:
        """Tokens that fit, where that is known."""
        return None

    @property
    def temperature(self) -> float | None:
        """Where no setting says it, and where that is known."""
        return None

    def about(self) -> str:
        """Memory and context, or who answers."""
        raise NotImplementedError

    def messages(self) -> list[Message]:
        """What the model is given."""
        first = [Message(SYSTEM, self.system)] if self.system else []
        return [*first, *self.turns]

    def answer(self, words: str, piece: PieceListener, cancelled: threading.Event) -> Answer:
        """Say something and take the answer into the history, as far as it came.

        Raises: UsageError, and the turns are as before.
        """
        self.retries = 0
        return self._say(words, piece, cancelled)

    def retry(self, piece: PieceListener, cancelled: threading.Event) -> Answer:
        """Answer the last message again, with the next seed. Raises: UsageError."""
        self.retries += 1
        before = list(self.turns)
        try:
            return self._say(self.undo(), piece, cancelled)
        except BaseException:
            self.turns[:] = before
            raise

    def undo(self) -> str:
        """Take the last turn back; gives what was said. Raises: UsageError."""
        begins = [k for k, message in enumerate(self.turns) if message.role == USER]
        if not begins:
            raise UsageError("nothing has been said yet")
        words = self.turns[begins[-1]].content
        del self.turns[begins[-1] :]
        return words

    def save(self, path: Path) -> None:
        """All messages as JSON."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self.messages()), indent=2))

    def load(self, path: Path) -> None:
        """Go on with messages from a file that save wrote. Raises: UsageError."""
        try:
            messages = msgspec.json.decode(path.read_bytes(), type=list[Message])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UsageError(f"no file of messages: {error}", where=path) from error
        system = [message.content for message in messages if message.role == SYSTEM]
        self.system = system[0] if system else None
        self.turns[:] = [message for message in messages if message.role != SYSTEM]

    def _say(self, words: str, piece: PieceListener, cancelled: threading.Event) -> Answer:
        before = list(self.turns)
        self.turns.append(Message(USER, words))
        try:
            return self._answer(piece, cancelled)
        except BaseException:
            self.turns[:] = before
            raise

    def _answer(self, piece: PieceListener, cancelled: threading.Event) -> Answer:
        seed = self.text.seed
        text = self.text if seed is None else replace(self.text, seed=seed + self.retries)
        answer = self.reply(text, piece, cancelled)
        generation = answer.generation
        if generation.error is not None:
            raise generation.error
        if generation.finish_reason is FinishReason.CANCELLED and not generation.text:
            self.undo()  # templates want a question and an answer in turn
        else:
            self.turns.append(Message(ASSISTANT, generation.text))
        self.last = generation
        self.generated_tokens += generation.completion_tokens
        self.decode_seconds += generation.timings.decode_seconds
        return answer


class Conversation(Turns):
    """A chat with a model of this process."""

    def __init__(self, model: LanguageModel, text: TextOptions, system: str | None = None) -> None:
        super().__init__(text, system)
        self.model = model

    @property
    def context_tokens(self) -> int:
        return self.model.engine.context_tokens

    @property
    def temperature(self) -> float:
        return self.model.chat_sampling.temperature

    def about(self) -> str:
        """Memory and context."""
        memory = f"{memory_line(self.model.memory)}; peak {bytes_text(peak_memory_bytes())}"
        return f"{memory}\ncontext {self.context_used()} of {self.context_tokens} tokens"

    def context_used(self) -> int:
        """Tokens of everything said so far."""
        return len(self.model.chat_prompt(self.messages())) if self.messages() else 0

    def reply(self, text: TextOptions, piece: PieceListener, cancelled: threading.Event) -> Answer:
        """What the model answers, once what does not fit has gone."""
        prompt, dropped = self._fitting_prompt()
        request = text.request(prompt, self.model.chat_sampling, max_tokens=None)
        (generation,) = self.model.run([request], piece, cancelled)
        room = self.context_tokens - len(prompt)
        at_limit = generation.finish_reason is FinishReason.LENGTH
        return Answer(generation, dropped, at_limit and generation.completion_tokens >= room)

    def _fitting_prompt(self) -> tuple[tuple[int, ...], int]:
        """Tokens of the conversation, and how many of its oldest turns had to go."""
        context = self.context_tokens
        prompt = self.model.chat_prompt(self.messages())
        least = min(LEAST_ANSWER_TOKENS, context // FREED_SHARE)
        if len(prompt) + least <= context:
            return prompt, 0
        dropped = 0
        while len(prompt) > context - context // FREED_SHARE and self._drop_oldest():
            prompt = self.model.chat_prompt(self.messages())
            dropped += 1
        if len(prompt) >= context:
            raise UsageError(
                "this message is longer than the context",
                expected=f"fewer than {context} tokens",
                found=len(prompt),
                do="Shorten it, or start with a larger --context",
            )
        return prompt, dropped

    def _drop_oldest(self) -> bool:
        """Forget the oldest turn, unless it is the last."""
        begins = [k for k, message in enumerate(self.turns) if message.role == USER]
        if len(begins) < 2:
            return False
        del self.turns[: begins[1]]
        return True
