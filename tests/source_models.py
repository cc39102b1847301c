"""Tiny models that read a source, with a tokenizer as T5's: Unigram pieces, an end, no begin.

In: a folder, changes of the configuration. Out: a model directory that answers every text with
something. Weights are those of tests/architectures/tiny_models.py.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
from tiny_models import ENCODER_DECODERS, write_model
from trained_tokenizers import CORPUS

SPECIAL = PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(99, -1, -1))
"""Of spans that are left out: the last token of the vocabulary is the first."""

PIECES = 300


LONGEST_PIECE = 6


def pieces(text: str) -> list[tuple[str, float]]:
    """The letters of a text and what else is frequent and long, scored by how often each comes.

    The trainer of the tokenizers package makes other pieces in every run.
    """
    counts: Counter[str] = Counter()
    for word in text.split():
        marked = f"\u2581{word}"
        for begin in range(len(marked)):
            for end in range(begin + 1, min(begin + LONGEST_PIECE, len(marked)) + 1):
                counts[marked[begin:end]] += 1
    letters = sorted(piece for piece in counts if len(piece) == 1)
    longer = (piece for piece in counts if len(piece) > 1)
    frequent = sorted(longer, key=lambda piece: (-counts[piece] * len(piece), piece))
    chosen = [*letters, *frequent[: PIECES - len(SPECIAL) - len(letters)]]
    total = sum(counts[piece] for piece in chosen)
    return [(piece, math.log(counts[piece] / total)) for piece in chosen]


@cache
def unigram() -> tokenizers.Tokenizer:
    """Spaces are marks of their own, and every text ends with the end token."""
    vocabulary = [(each, 0.0) for each in SPECIAL] + pieces(CORPUS[:20000])
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.WhitespaceSplit(),
            tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always"),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_special_tokens(list(SENTINELS))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, 1)]
    )
    return tokenizer


def write_source_model(folder: Path, variant: str = "t5-gated", **changed: Any) -> Path:
    """A directory as save_pretrained writes it."""
    tokenizer = unigram()
    configuration = ENCODER_DECODERS[variant] | {
        "vocab_size": tokenizer.get_vocab_size() + 7,  # T5's has rows without tokens too
        **changed,
    }
    folder.mkdir(exist_ok=True)
    write_model(folder, {key: each for key, each in configuration.items() if each is not ...})
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": END, "pad_token": PAD, "unk_token": UNKNOWN, "extra_ids": 100}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
