"""Text -> windows of tokens to score, cut the way a named protocol cuts them.

In: a Text, a tokenizer's encode, a protocol. Out: Windows. The tail shorter than a window is
dropped. Refuses texts shorter than one window and windows in which nothing would be scored.
Source: gptq, the evaluation of IST-DASLab/gptq; llama.cpp, `perplexity()` of its perplexity tool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crumb.errors import TextError, UsageError
from crumb.texts.sources import Text

Encode = Callable[[str], list[int]]
"""Text to tokens, with the special tokens that the tokenizer itself adds."""


@dataclass(frozen=True)
class Protocol:
    """How a text is cut and which tokens count."""

    name: str
    length: int  # tokens of a window, unless another length is asked for
    begins_each_window: bool  # the begin token replaces the first token of every window
    first_scored: Callable[[int], int]  # window length -> first token whose probability counts


PROTOCOLS = {
    row.name: row
    for row in (
        Protocol("gptq", 2048, False, lambda _: 1),
        # Logits at positions length/2 .. length-2 are scored, each on the token that follows:
        # with 512 tokens those are the targets 257 .. 511, 255 of them.
        Protocol("llama.cpp", 512, True, lambda length: length // 2 + 1),
    )
}
"""One row per protocol. Their figures must not be compared with each other."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of one text. A token is scored by the logits of the position before it."""

    tokens: NDArray[np.int64]  # (windows, length)
    first_scored: int  # index in a window; this token and all after it are scored
    protocol: str
    text: str  # the text's name
    text_sha256: str

    @property
    def length(self) -> int:
        """Tokens of a window."""
        return int(self.tokens.shape[1])

    @property
    def scored_tokens(self) -> int:
        """Tokens whose probability counts, in all windows together."""
        return len(self.tokens) * (self.length - self.first_scored)


def cut_windows(
    text: Text,
    encode: Encode,
    *,
    protocol: str = "gptq",
    length: int | None = None,
    limit: int | None = None,
    begin_token: int | None = None,
) -> Windows:
    """Windows of a text: the first `limit` of them, or all.

    A protocol that begins each window does so only if the tokenizer itself puts `begin_token` at
    the start of a text, as llama.cpp does.
    Raises: UsageError for settings that cannot be, TextError for a text shorter than one window.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(
            "no such protocol", expected=" or ".join(PROTOCOLS), found=repr(protocol[:80])
        )
    rule = PROTOCOLS[protocol]
    length = rule.length if length is None else length
    first_scored = rule.first_scored(length)
    if first_scored >= length:
        raise UsageError(
            "a window this short leaves nothing to score",
            where=f"protocol {protocol}",
            found=f"windows of {length} tokens",
        )
    if limit is not None and limit < 1:
        raise UsageError("the limit of windows must be at least 1", found=limit)
    stream = token_stream(text, encode)
    count = len(stream) // length
    if count == 0:
        raise TextError(
            "this text is shorter than one window",
            where=text.name,
            expected=f"at least {length} tokens",
            found=f"{len(stream)} tokens",
            do=f"Give a longer text, or windows of at most {len(stream)} tokens",
        )
    count = count if limit is None else min(count, limit)
    tokens = stream[: count * length].reshape(count, length).copy()
    if rule.begins_each_window and begin_token is not None and stream[0] == begin_token:
        tokens[:, 0] = begin_token
    return Windows(tokens, first_scored, protocol, text.name, text.sha256)


def token_stream(text: Text, encode: Encode) -> NDArray[np.int64]:
    """All tokens of a text, tokenized once. Shapes: (tokens,)."""
    return np.asarray(encode(text.text)[: text.tokens_kept], np.int64).reshape(-1)
