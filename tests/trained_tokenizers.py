"""Byte-level tokenizers that are trained here, and texts to try them on.

In: a pre-tokenizer, as a tokenizer.json has it. Out: a tokenizer of 900 tokens; passages, and
scraps of many scripts with special tokens, thrown together.
"""

from __future__ import annotations

import json
import random
from typing import Any

import tokenizers
from gguf_vocabularies import EMBEDDED

TEXT = (EMBEDDED / "texts" / "excerpt-calibration.txt").read_text(encoding="utf-8")
CORPUS = TEXT.replace("<unk>", "unk")  # a special token to us, text to SentencePiece
SCRAPS = (
    *" \n\t_0éß語🙂नЖ▁",
    "\r\n",
    "  ",
    "I'll",
    "WE'RE",
    "17",
    "日本",
    "e\u0301",
    "the",
    " The",
    "f(x):",
    "\n    return ",
    "//",
    "👩\u200d🚀",
    "한국어",
    "،؟",
    "…",
    "\u00a0",
    "1234567",
    "²½",
)
MARKS = ("<s>", "</s>", "<|turn|>")


def texts(*marks: str) -> list[str]:
    """160 texts: passages, and scraps with special tokens thrown together."""
    draw = random.Random(0)
    made = [""]
    while len(made) < 160:
        start = draw.randrange(len(CORPUS))
        made += [
            CORPUS[start : start + draw.randrange(300)],
            "".join(draw.choice((*SCRAPS, *marks)) for _ in range(draw.randrange(30))),
        ]
    return made


def trained(pre_tokenizer: Any, *, whole_words: bool, normal_form: bool) -> Any:
    """A byte-level tokenizer with a begin token."""
    model = {"type": "BPE", "vocab": {}, "merges": [], "ignore_merges": whole_words}
    content = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": pre_tokenizer,
        "normalizer": {"type": "NFC"} if normal_form else None,
        "model": model,
    }
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=list(MARKS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    return tokenizer
