"""What a model with an encoder takes of a request: the text it reads, and how its answers begin.

In: a checkpoint, a request's tokens. Out: the token before every answer; the source and the prompt
of a sequence; a template that writes chats as plain text, where the model has none.
Refuses a model that does not say how its answers begin, and a request without a text to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.errors import CheckpointError, UsageError
from crumb.files.model_files import CONFIGURATION, optional_json
from crumb.requests.generate_request import Prompt, plain_prompt
from crumb.tokenizer.chat_template import FILE, ChatTemplate, load_chat_template
from crumb.tokenizer.tokenizer import Tokenizer

START = "decoder_start_token_id"

MOST_SPANS = 100
"""Marks that T5's tokenizers have for spans that are left out."""

PLAIN = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
)
"""A chat as the text that its messages make, a line or more for each."""


def start_token(checkpoint: Checkpoint) -> int | None:
    """The token that stands before every answer; None where the prompt itself does.

    Raises: CheckpointError.
    """
    plan = checkpoint.plan
    if not plan.inputs:
        return None
    for settings in (
        optional_json(checkpoint.files, "generation_config.json"),
        checkpoint.configuration,
    ):
        token = settings.get(START)
        if type(token) is int and 0 <= token < plan.vocabulary:
            return token
    raise CheckpointError(
        "the model does not say which token its answers begin with",
        where=checkpoint.path / CONFIGURATION,
        expected=f"{START} from 0 to {plan.vocabulary - 1}",
        found=str(checkpoint.configuration.get(START, "no such key"))[:80],
        do=f"Add it; T5's is its padding token: {START} 0",
    )


def pair_tokens(checkpoint: Checkpoint, tokenizer: Tokenizer) -> tuple[int, int, tuple[int, ...]]:
    """What pairs are made with: the token before every answer, the one behind every text, and the
    marks of spans that are left out, <extra_id_0> first. Raises: CheckpointError.
    """
    start = start_token(checkpoint)
    assert start is not None, "it reads a source"
    ends = tokenizer.encode("") or sorted(tokenizer.end_tokens)
    if not ends:
        raise CheckpointError(
            "the tokenizer has no token that ends a text",
            where=checkpoint.path,
            expected="an eos_token",
        )
    named = (tokenizer.numbers((f"<extra_id_{number}>",)) for number in range(MOST_SPANS))
    return start, ends[-1], tuple(token for tokens in named for token in tokens)


def chat_template_of(checkpoint: Checkpoint) -> ChatTemplate:
    """The chat template of a model; one that reads a text and has none reads chats as texts.

    Raises: UsageError when it has none, CheckpointError when it cannot be read.
    """
    try:
        return load_chat_template(checkpoint.files)
    except UsageError:
        if not checkpoint.plan.inputs:
            raise
        return ChatTemplate({"default": PLAIN}, {}, checkpoint.path / FILE)


@dataclass(frozen=True)
class Reading:
    """How the requests of one model are read."""

    tokenizer: Tokenizer
    start: int | None  # before every answer; None: the prompt itself stands there

    def split(self, tokens: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """The source and the prompt of a sequence. Raises: UsageError for an empty source."""
        if self.start is None:
            return (), tokens
        if not set(tokens) - self.tokenizer.end_tokens:
            raise UsageError(
                "the text to read is empty",
                where="prompt",
                do="Give the text that the model is to answer",
            )
        return tokens, (self.start,)

    def target(self, target: Prompt) -> Sequence[int]:
        """The tokens of an answer, to be scored. Raises: UsageError where there are none."""
        plain = plain_prompt(target)
        if isinstance(plain, str):
            plain = tuple(self.tokenizer.encode(plain, special=self.start is not None))
        if not plain:
            raise UsageError("the target is empty", where="target", do="Give at least one token")
        return plain

    def chat_tokens(self, text: str) -> tuple[int, ...]:
        """Of a chat as its template writes it; a source ends as any text that is read."""
        return tuple(self.tokenizer.encode(text, special=self.start is not None))
