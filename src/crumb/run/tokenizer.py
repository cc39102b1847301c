"""Text to tokens and back, through the tokenizers library.

In: a model directory with tokenizer.json, or LLaMA's tokenizer.model. Out: a Tokenizer.
Refuses directories with neither, and files that the library cannot read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from crumb.checkpoints.huggingface import read_json
from crumb.errors import CheckpointError, ModelNotFound
from crumb.run.sentencepiece_model import convert_sentencepiece

FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
"""What belongs to a tokenizer and travels with a quantized model."""


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer."""

    backend: tokenizers.Tokenizer
    end_tokens: frozenset[int]
    begin_token: int | None

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, with the special tokens that the tokenizer itself adds."""
        ids: list[int] = self.backend.encode(text).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self.backend.decode(list(tokens))
        return text


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model directory. Raises: ModelNotFound, CheckpointError."""
    if (path / "tokenizer.json").exists():
        try:
            backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(
                f"the tokenizer cannot be read: {error}", where=path / "tokenizer.json"
            ) from error
    elif (path / "tokenizer.model").exists():
        backend = convert_sentencepiece(path / "tokenizer.model")
    else:
        raise ModelNotFound(
            "no tokenizer in this directory", where=path, expected="tokenizer.json"
        )
    backend.no_truncation()
    backend.no_padding()
    settings = _optional(path / "config.json") | _optional(path / "generation_config.json")
    begin = settings.get("bos_token_id")
    end = settings.get("eos_token_id")
    ends = end if isinstance(end, list) else [end]
    return Tokenizer(
        backend,
        frozenset(token for token in ends if isinstance(token, int)),
        begin if isinstance(begin, int) else None,
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
