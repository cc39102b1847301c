"""Tiny models that keep a state, with RWKV's World vocabulary: all bytes, words, emoji, Chinese.

In: a folder, a variant, changes of the configuration. Out: a model directory that goes on with any
text somehow. Weights are those of tests/architectures/tiny_models.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_models import VARIANTS, write_model

from crumb.files.model_files import WORLD_FILE

WORDS = (
    "the",
    " the",
    "then",
    "\n\n",
    "User",
    ": ",
    "12",
    "it's",
    'say "',
    "世界",
    "界!",
    "👍",
    "é",
)
PARTS = (b"\xf0\x9f", b"\xe4\xb8", b"\xf0\x9f\x91", b"\x00\x00")
"""Bytes that are no characters: beginnings of some, and zeros."""

VOCABULARY = 280
"""More than there are tokens, as the published models have it."""


def vocabulary_lines() -> list[str]:
    """As the published file writes texts and bytes."""
    pieces: list[str | bytes] = [chr(byte) if byte < 128 else bytes([byte]) for byte in range(256)]
    pieces += [*WORDS, *PARTS]
    sizes = [len(each.encode() if isinstance(each, str) else each) for each in pieces]
    return [
        f"{number} {piece!r} {size}"
        for number, (piece, size) in enumerate(zip(pieces, sizes, strict=True), 1)
    ]


def write_recurrent_model(folder: Path, variant: str = "rwkv", **changed: Any) -> Path:
    """A directory as it is published."""
    folder.mkdir(exist_ok=True)
    write_model(folder, VARIANTS[variant] | {"vocab_size": VOCABULARY, **changed})
    text = "\n".join(vocabulary_lines()) + "\n"
    (folder / WORLD_FILE).write_text(text, encoding="utf-8")
    return folder
