"""Unigram tokenizers: pieces that make up a text so that the sum of their scores is the largest.

In: pieces, or a tokenizer.json. Out: the one from the other; what SentencePiece does to characters
stays as its compiled bytes. Refuses normal forms and splits that GGUF has no words for.
Source: arXiv 1808.06226, section 3.2; T5's tokenizer.json.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.configuration import shown
from crumb.errors import UsageError
from crumb.tokenizer.scored_pieces import (
    SPACE,
    Piece,
    PieceSettings,
    PieceType,
    added_tokens,
    begin_and_end,
)

ALWAYS, NEVER = "always", "never"


def unigram_tokenizer(
    pieces: Sequence[Piece], settings: PieceSettings, characters: NDArray[Any] | None
) -> dict[str, Any]:
    """The tokenizer.json of pieces; `characters`: what is done to them first, compiled."""
    spaces = {
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": ALWAYS if settings.space_prefix else NEVER,
        "split": True,
    }
    words: dict[str, Any] = {"type": "WhitespaceSplit"}
    together = {"type": "Sequence", "pretokenizers": [words, spaces]}
    normal_form = None
    if characters is not None and len(characters):
        written = base64.b64encode(characters.tobytes()).decode()
        normal_form = {"type": "Precompiled", "precompiled_charsmap": written}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(pieces),
        "normalizer": normal_form,
        "pre_tokenizer": together if settings.extra_spaces_removed else spaces,
        "post_processor": begin_and_end(pieces, settings.begin, settings.end),
        "decoder": spaces,
        "model": {
            "type": "Unigram",
            "unk_id": settings.unknown,
            "vocab": [[piece.text, piece.score] for piece in pieces],
            "byte_fallback": any(piece.type == PieceType.BYTE for piece in pieces),
        },
    }


def unigram_spaces(parsed: Mapping[str, Any], where: object, do: str) -> tuple[bool, bool]:
    """Whether a space is put in front of texts, and extra ones removed. Raises: UsageError."""
    pre = parsed.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    names = [step.get("type") for step in steps]
    if names in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]):
        space = steps[-1]
        before = space.get("prepend_scheme", ALWAYS if space.get("add_prefix_space", True) else "")
        if space.get("replacement") == SPACE:
            return before in (ALWAYS, "first"), len(steps) == 2
    raise UsageError(
        "GGUF cannot express how this tokenizer splits texts",
        where=where,
        expected=f"spaces as {SPACE}, words apart or not",
        found=shown(names),
        do=do,
    )


def unigram_characters(parsed: Mapping[str, Any], where: object, do: str) -> NDArray[np.uint8]:
    """What is done to characters first, compiled; nothing where nothing is. Raises: UsageError."""
    form = parsed.get("normalizer") or {}
    steps = form.get("normalizers", [form] if form else [])
    compiled = [step for step in steps if step.get("type") == "Precompiled"]
    others = [step for step in steps if step not in compiled and not _joins_spaces(step)]
    if others or len(compiled) > 1:
        raise UsageError(
            "GGUF cannot express this tokenizer's normal form",
            where=where,
            expected="SentencePiece's own, compiled, or none",
            found=shown([step.get("type") for step in steps]),
            do=do,
        )
    if not compiled:
        return np.empty(0, np.uint8)
    try:
        raw = base64.b64decode(compiled[0]["precompiled_charsmap"] or "", validate=True)
    except (KeyError, TypeError, binascii.Error) as error:
        raise UsageError(
            "the compiled normal form cannot be read", where=where, expected="base64", do=do
        ) from error
    return np.frombuffer(raw, np.uint8).copy()


def _joins_spaces(step: Mapping[str, Any]) -> bool:
    """Several spaces as one, which splitting at spaces makes of them anyway."""
    return step.get("type") == "Replace" and step.get("pattern") == {"Regex": " {2,}"}
