"""Which tokens may come next under a grammar: llguidance's masks over the model's vocabulary.

In: a tokenizer, a ReplyFormat, then the tokens as they are chosen. Out: masks. Refuses schemas,
expressions and grammars that cannot be held to, with llguidance's reason: never fewer rules than
were asked for. Source: github.com/guidance-ai/llguidance, docs/syntax.md and docs/json_schema.md.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from crumb.errors import CheckpointError, UsageError
from crumb.requests.reply_format import ReplyFormat, ReplyKind
from crumb.structure.tool_format import WHITE_SPACE
from crumb.tokenizer.tokenizer import Tokenizer

Allowed = NDArray[np.bool_]

START = re.compile(r"^\s*start\s*:", re.MULTILINE)

MOST_DIGITS = 24
"""Tokens of digits one after another, unless nothing else is allowed: no number needs more, and a
small model may never end one."""

LEADING_SPACES = r"/[\x20\x0A]{0,2}/"
"""Between a model's thoughts and its answer."""

BEFORE_MARK = r"/[^<\[{]{0,16}/"
"""What a token may hold of the text before the mark that it begins."""


@dataclass(frozen=True)
class GrammarVocabulary:
    """A model's tokens as llguidance knows them."""

    native: LLTokenizer
    size: int  # of the model's logits
    has_end: bool  # the model has a token by which it ends a text
    digits: Allowed  # tokens that are digits and nothing else


def read_vocabulary(tokenizer: Tokenizer, size: int) -> GrammarVocabulary:
    """Takes about a second for a vocabulary of 100,000: once for a model. Raises: CheckpointError.

    `size`: of the model's logits.
    """
    ends = sorted(tokenizer.end_tokens)
    try:
        # a model without an end gets a token for it behind its own, which is never chosen
        native = LLTokenizer(
            tokenizer.backend.to_str(), n_vocab=size + (not ends), eos_token=ends or [size]
        )
    except Exception as error:
        raise CheckpointError(
            f"this tokenizer cannot hold a text to a grammar: {str(error)[:200]}",
            where=tokenizer.path,
        ) from error
    pieces = (tokenizer.piece(token) or "" for token in range(size))
    digits = np.fromiter((each.isascii() and each.isdigit() for each in pieces), np.bool_, size)
    return GrammarVocabulary(native, size, bool(ends), digits)


class GrammarMatcher:
    """One text under a grammar."""

    def __init__(
        self, vocabulary: GrammarVocabulary, form: ReplyFormat, *, after_thoughts: bool = False
    ) -> None:
        """`after_thoughts`: white space may come first. Raises: UsageError."""
        self._vocabulary = vocabulary
        text = lark_of(form)
        if form.opens:
            text = behind(BEFORE_MARK, text)
        elif after_thoughts:
            text = behind(LEADING_SPACES, text)
        grammar = LLMatcher.grammar_from_lark(text)
        complaint = LLMatcher.validate_grammar(grammar, vocabulary.native)
        if complaint:
            raise UsageError(
                f"an answer cannot be held to this {form.kind.value}: {_first_line(complaint)}",
                where="response_format",
            )
        # reset() does not bring back a matcher that a refused token has stopped
        self._fresh = LLMatcher(vocabulary.native, grammar, log_level=0)
        self._native = self._fresh.deep_copy()
        self._digits = 0  # tokens of digits that the text ends with
        self._bits = np.zeros(-(-(vocabulary.size + 1) // 32), np.int32)
        self._check()

    def allowed(self) -> Allowed:
        """Which tokens may come next. Shapes: -> (vocabulary,)."""
        bits = self._bits
        self._native.unsafe_compute_mask_ptr(bits.ctypes.data, _mask_bytes(self._vocabulary))
        self._check()
        each = np.unpackbits(bits.view(np.uint8), bitorder="little")
        allowed = each[: self._vocabulary.size].view(np.bool_)
        if self._digits < MOST_DIGITS:
            return allowed
        others = allowed & ~self._vocabulary.digits
        return others if others.any() else allowed

    def accept(self, token: int) -> None:
        """A token that was allowed comes next."""
        self._native.consume_token(token)
        self._check()
        self._count_digits(token)

    def try_accept(self, token: int) -> bool:
        """The same where it is allowed; whether it was."""
        is_accepted = bool(self._native.try_consume_tokens([token]) == 1)
        if is_accepted:
            self._count_digits(token)
        return is_accepted

    def forced(self) -> list[int]:
        """Tokens that are the only ones that may come next, in order."""
        return list(self._native.compute_ff_tokens())

    def restart(self) -> None:
        """Be at the beginning of the text again."""
        self._native = self._fresh.deep_copy()
        self._digits = 0

    @property
    def may_end(self) -> bool:
        """Whether the text is whole, though more may follow."""
        return bool(self._native.is_accepting())

    @property
    def is_done(self) -> bool:
        """Whether the text is whole and nothing may follow, or no token could say that it ends."""
        native = self._native
        return bool(native.is_stopped() or (not self._vocabulary.has_end and native.is_accepting()))

    def _count_digits(self, token: int) -> None:
        is_digits = token < self._vocabulary.size and bool(self._vocabulary.digits[token])
        self._digits = self._digits + 1 if is_digits else 0

    def _check(self) -> None:
        if self._native.is_error():
            raise UsageError(
                "the grammar of this answer is too much for llguidance: "
                f"{_first_line(self._native.get_error())}",
                where="response_format",
            )


def _mask_bytes(vocabulary: GrammarVocabulary) -> int:
    return -(-int(vocabulary.native.vocab_size) // 32) * 4


def lark_of(form: ReplyFormat) -> str:
    """A form as a grammar of Lark. Raises: UsageError for JSON that is none."""
    if form.kind is ReplyKind.GRAMMAR:
        return form.text or ""
    return f"start: {_body(form)}"


def _body(form: ReplyFormat) -> str:
    """What stands behind a rule's name for a schema or an expression. Raises: UsageError."""
    if form.kind is ReplyKind.REGEX:
        escaped = (form.text or "").replace("/", "\\/").replace("\n", "\\n")
        return f"/{escaped}/"
    schema: Any = {"type": "object"} if form.kind is ReplyKind.JSON_OBJECT else form.schema
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    guidance = {"whitespace_pattern": WHITE_SPACE}
    try:
        return f"%json {json.dumps({**dict(schema), 'x-guidance': guidance})}"
    except (TypeError, ValueError) as error:
        raise UsageError(f"a schema is JSON: {error}", where="response_format") from error


def behind(head: str, grammar: str) -> str:
    """A grammar of Lark with something in front: a regular expression, or rules and literals."""
    named = START.sub("held:", grammar, count=1)
    lead = f"lead\nlead: {head}" if head.startswith("/") else head
    first, _, rest = lead.partition("\n")
    return "\n".join([f"start: {first} held", *([rest] if rest else []), named])


def _first_line(complaint: str) -> str:
    lines = [line.strip() for line in str(complaint).splitlines() if line.strip()]
    return (lines[0] if lines else "no reason")[:300]
