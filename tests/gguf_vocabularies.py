"""Vocabularies for the tests of GGUF tokenizers, as files of a directory and as metadata.

In: changes. Out: the embedded model's and SentencePiece's own tokenizer as metadata, small ones of
five tokens as files, one of three as metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from crumb.checkpoints.gguf.tokenizer.writer import tokenizer_metadata
from crumb.files.model_files import DirectoryFiles, MadeFiles

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
"""Types of tokens."""

GGML = "tokenizer.ggml."
HERE = Path("model.gguf")
EMBEDDED = resources.files("crumb") / "embedded"
NOVELLA = Path(str(EMBEDDED / "novella-7m"))
SENTENCEPIECE = Path(__file__).parent / "unit" / "tokenizer" / "tokenizer-400.model"


def novella_metadata(**configuration: Any) -> dict[str, Any]:
    settings = json.loads((NOVELLA / "config.json").read_text()) | configuration
    return tokenizer_metadata(DirectoryFiles(NOVELLA), settings)


def made(**contents: Any) -> MadeFiles:
    """made(tokenizer=object, ...): files named .json."""
    files = {f"{name}.json": json.dumps(value).encode() for name, value in contents.items()}
    return MadeFiles(Path("made"), files)


def library(files: Mapping[str, bytes]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_buffer(files["tokenizer.json"])


@cache
def _scored() -> dict[str, Any]:
    files = {"tokenizer.model": SENTENCEPIECE.read_bytes()}
    return tokenizer_metadata(MadeFiles(SENTENCEPIECE.parent, files), {})


def scored(**changes: Any) -> dict[str, Any]:
    """Metadata of tokenizer-400.model with other keys; None for a key that is not there."""
    metadata = _scored() | {GGML + key: value for key, value in changes.items()}
    return {key: value for key, value in metadata.items() if value is not None}


def added(token: int, text: str, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": text, "special": special, **flags}


BYTES: dict[str, Any] = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}


WORDS = BYTES | {"use_regex": True}


SMALL: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [added(3, "<s>", True), added(4, "▁x", False)],
    "normalizer": None,
    "pre_tokenizer": WORDS,
    "post_processor": None,
    "decoder": WORDS,
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
}
"""Five tokens over bytes."""


SCORED_TEXTS = SMALL["model"]["vocab"] | {"<s>": 3, "▁x": 4}
SCORED_TEXTS |= {f"<0x{byte:02X}>": 5 + byte for byte in range(256)}
SMALL_SCORED = SMALL | {
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    "pre_tokenizer": None,
    "decoder": None,
    "model": SMALL["model"] | {"byte_fallback": True, "vocab": SCORED_TEXTS},
}


def small(base: Mapping[str, Any] = SMALL, /, model: Any = None, **changes: Any) -> MadeFiles:
    return made(tokenizer={**base, **changes, "model": base["model"] | (model or {})})


def bytes_over(*texts: str, types: list[int], merges: tuple[str, ...] = ()) -> dict[str, Any]:
    """Metadata of a small vocabulary over bytes."""
    return {
        GGML + "model": "gpt2",
        GGML + "pre": "gpt-2",
        GGML + "tokens": list(texts),
        GGML + "token_type": np.array(types, np.int32),
        GGML + "merges": list(merges),
    }


def over_bytes(**changes: Any) -> dict[str, Any]:
    metadata = bytes_over("a", "b", "ab", types=[1, 1, 1], merges=("a b",))
    metadata |= {GGML + key: value for key, value in changes.items()}
    return {key: value for key, value in metadata.items() if value is not None}
