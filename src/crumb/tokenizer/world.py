"""RWKV's World vocabulary: always the longest token that the bytes of a text go on with.

In: rwkv_vocab_v20230424.txt: on each line a number, a Python literal (text or bytes) and the length
of its bytes. Out: tokens of texts, and the vocabulary as the tokenizers library has it, which
decodes and names them; of equal pieces the last counts. Refuses other lines, wrong lengths, numbers
that are there twice, and a vocabulary in which a byte has no token.
Source: BlinkDL/ChatRWKV, tokenizer/rwkv_tokenizer.py, for the file and the rule.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from crumb.errors import CheckpointError
from crumb.files.model_files import WORLD_FILE

END, END_TEXT = 0, "<|endoftext|>"
"""Token 0, which the file leaves out: it stands between texts."""

END_TEXTS = re.compile(r"<\|endoftext\|>|<\|rwkv_tokenizer_end_of_text\|>")
"""How chat templates write it."""

LINE = re.compile(r"(\d{1,9}) (.+) (\d{1,9})")

START_BYTES = 2
"""By which tokens are looked up."""


@dataclass(frozen=True)
class WorldVocabulary:
    """Tokens by their bytes."""

    tokens: Mapping[bytes, int]
    lengths: Mapping[bytes, tuple[int, ...]]  # by the first bytes of tokens: the longest first

    def encode(self, text: str) -> list[int]:
        """Tokens of a text; one that ends texts may be written out."""
        ids: list[int] = []
        for index, part in enumerate(END_TEXTS.split(text)):
            if index:
                ids.append(END)
            self._add(ids, part.encode())
        return ids

    def token_of(self, text: str) -> int | None:
        """The token that is this text."""
        return END if END_TEXTS.fullmatch(text) else self.tokens.get(text.encode())

    def _add(self, ids: list[int], content: bytes) -> None:
        tokens, lengths, place = self.tokens, self.lengths, 0
        while place < len(content):
            for length in lengths.get(content[place : place + START_BYTES], (1,)):
                token = tokens.get(content[place : place + length])
                if token is not None:
                    ids.append(token)
                    place += length
                    break


def read_world(content: bytes, directory: Path) -> tuple[WorldVocabulary, tokenizers.Tokenizer]:
    """A vocabulary's file. Raises: CheckpointError."""
    where = directory / WORLD_FILE
    tokens: dict[bytes, int] = {}
    numbers = {END}
    for number, line in enumerate(_text(content, where).removesuffix("\n").split("\n"), 1):
        line = line.removesuffix("\r")  # some packages publish it so
        token, piece = _parse(line, where, number)
        if token in numbers:
            raise _refuse("a number of this vocabulary is there twice", where, number, line)
        numbers.add(token)
        tokens[piece] = token
    missing = next((byte for byte in range(256) if bytes([byte]) not in tokens), None)
    if missing is not None:
        raise CheckpointError(
            "a byte has no token in this vocabulary",
            where=where,
            expected="a token for each of the 256",
            found=f"none for {bytes([missing])!r}",
        )
    lengths: dict[bytes, set[int]] = {}
    for piece in tokens:
        lengths.setdefault(piece[:START_BYTES], {1}).add(len(piece))
    ordered = {start: tuple(sorted(each, reverse=True)) for start, each in lengths.items()}
    return WorldVocabulary(tokens, ordered), _library(tokens)


def _text(content: bytes, where: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"this vocabulary is not UTF-8: {error.reason}", where=where
        ) from error


def _parse(line: str, where: Path, number: int) -> tuple[int, bytes]:
    """A line's token and its bytes. Raises: CheckpointError."""
    match = LINE.fullmatch(line)
    if match is None:
        raise _refuse("not a line of a vocabulary", where, number, line)
    try:
        piece = ast.literal_eval(match[2])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        piece = None
    if isinstance(piece, str):
        piece = piece.encode(errors="surrogatepass")
    if not isinstance(piece, bytes) or len(piece) != int(match[3]) or not piece:
        raise _refuse("not a line of a vocabulary", where, number, line)
    return int(match[1]), piece


def _refuse(what: str, where: Path, number: int, line: str) -> CheckpointError:
    return CheckpointError(
        what,
        where=f"{where}, line {number}",
        expected="a number, a text or bytes, the count of its bytes: 257 'the' 3",
        found=repr(line)[:80],
    )


def _library(tokens: Mapping[bytes, int]) -> tokenizers.Tokenizer:
    """The same tokens for decoding, names and grammars; bytes as letters, as GPT-2 writes them."""
    letters = _letters()
    vocabulary = {END_TEXT: END} | {
        "".join(letters[byte] for byte in piece): token for piece, token in tokens.items()
    }
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(END_TEXT, normalized=False, special=True)])
    return backend


def _letters() -> list[str]:
    """The letter of each byte: itself where it can be seen, else the next one above 255."""
    seen = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters, above = [], 256
    for byte in range(256):
        letters.append(chr(byte if byte in seen else above))
        above += byte not in seen
    return letters
