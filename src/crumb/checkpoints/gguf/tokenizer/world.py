"""RWKV's World vocabulary in GGUF: tokens as Python writes their bytes, without the quotes.

In: the pieces of a file, or the vocabulary of a model directory. Out: the lines of the one, or the
pieces of the other; the first piece is the token that stands between texts.
Refuses pieces that are no bytes, and special ones behind the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from crumb.errors import CheckpointError
from crumb.tokenizer.scored_pieces import Piece, PieceType
from crumb.tokenizer.world import END, read_world

END_PIECE = Piece("<s>", 0.0, PieceType.CONTROL)
"""What llama.cpp's converter calls the token that the vocabulary's file leaves out."""

ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
ESCAPED = {"t": 9, "n": 10, "r": 13}


def world_lines(pieces: Sequence[Piece], where: str) -> bytes:
    """The vocabulary's file. Raises: CheckpointError."""
    lines = []
    for token, piece in enumerate(pieces):
        if token == END:
            continue
        if piece.type != PieceType.NORMAL:
            raise CheckpointError(
                "a special token in a vocabulary that has but one",
                where=f"{where}[{token}]",
                expected="a token of the normal type",
                found=f"{piece.text[:40]!r} of type {int(piece.type)}",
            )
        content = _bytes_of(piece.text, f"{where}[{token}]")
        lines.append(f"{token} {content!r} {len(content)}\n")
    return "".join(lines).encode()


def _bytes_of(text: str, where: str) -> bytes:
    """What a piece stands for. Raises: CheckpointError."""

    def byte(match: re.Match[str]) -> str:
        code = match[1]
        if len(code) > 1:
            return chr(int(code[1:], 16))
        return chr(ESCAPED[code]) if code in ESCAPED else code

    try:
        return ESCAPE.sub(byte, text).encode("latin-1")
    except UnicodeEncodeError as error:
        raise CheckpointError(
            "a token is not written as bytes",
            where=where,
            expected=r"letters below 256, others as \x and two digits",
            found=repr(text[:40]),
        ) from error


def world_pieces(content: bytes, directory: Path) -> tuple[Piece, ...]:
    """The pieces of a vocabulary's file; numbers that are no token's are unused pieces.

    Raises: CheckpointError.
    """
    vocabulary, _ = read_world(content, directory)
    tokens: Mapping[int, bytes] = {token: piece for piece, token in vocabulary.tokens.items()}
    pieces = [END_PIECE]
    for token in range(END + 1, max(tokens) + 1):
        if token in tokens:
            pieces.append(Piece(repr(tokens[token])[2:-1], 0.0, PieceType.NORMAL))
        else:
            pieces.append(Piece(f"[PAD{token}]", 0.0, PieceType.UNUSED))
    return tuple(pieces)
