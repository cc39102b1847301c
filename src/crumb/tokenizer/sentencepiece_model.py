"""LLaMA's tokenizer.model, a SentencePiece file, as a tokenizer of the tokenizers library.

In: the file. Out: byte-pair encoding with byte fallback whose merges follow the pieces' scores.
Special tokens written out in a text are recognized, as by the tokenizer.json of these models.
Refuses what the reader of these files and the library refuse.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from crumb.errors import CheckpointError
from crumb.tokenizer.scored_pieces import MOST_MERGES, pieces_tokenizer
from crumb.tokenizer.sentencepiece import read_sentencepiece


def convert_sentencepiece(
    path: Path, *, add_begin: bool = True, add_end: bool = False
) -> Tokenizer:
    """A tokenizer from a tokenizer.model; by default texts start with the begin token.

    Raises: CheckpointError.
    """
    model = read_sentencepiece(path)
    settings = model.piece_settings(add_begin=add_begin, add_end=add_end)
    try:
        content = pieces_tokenizer(model.pieces, settings, most_merges=MOST_MERGES)
        return Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"the tokenizer cannot be built: {error}", where=path) from error
