"""The tokenizer in the metadata of a GGUF file, as the tokenizer files of a model directory.

In: key-values as the container's reader gives them. Out: tokenizer.json, tokenizer_config.json and
generation_config.json. What GGUF does not hold (spaces that a special token takes with it) is lost.
Refuses other kinds than "llama" (scored pieces), "t5" (likeliest), "gpt2" (merges over bytes) and
"rwkv" (longest), pre-tokenizers without a row, and wrong vocabularies; errors name file and key.
Source: the GGUF format description; what an absent key means is what llama.cpp takes it for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from crumb.architectures.configuration import shown
from crumb.checkpoints.gguf.metadata import Metadata
from crumb.checkpoints.gguf.tokenizer.merges import BYTE_DECODER, merge_model
from crumb.checkpoints.gguf.tokenizer.pre_tokenizers import find_pre_tokenizer, pre_tokenizer_json
from crumb.checkpoints.gguf.tokenizer.templates import chat_templates
from crumb.checkpoints.gguf.tokenizer.unigram import unigram_tokenizer
from crumb.checkpoints.gguf.tokenizer.world import world_lines
from crumb.errors import CheckpointError
from crumb.files.model_files import WORLD_FILE
from crumb.tokenizer.scored_pieces import (
    BYTE_PIECES,
    LONGEST_PIECE_CHARACTERS,
    MOST_MERGES,
    Piece,
    PieceSettings,
    PieceType,
    added_tokens,
    begin_and_end,
    pieces_tokenizer,
)

MODEL, PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
SCORES, MERGES = "tokenizer.ggml.scores", "tokenizer.ggml.merges"
ADD_BEGIN, ADD_END = "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"
ADD_SPACE = "tokenizer.ggml.add_space_prefix"
REMOVE_SPACES = "tokenizer.ggml.remove_extra_whitespaces"
CHARACTERS = "tokenizer.ggml.precompiled_charsmap"

TOKEN_KEYS: Mapping[str, str] = {
    name: f"tokenizer.ggml.{name}_token_id"
    for name in ("bos", "eos", "eot", "eom", "unknown", "padding")
}
ENDS = ("eos", "eot", "eom")
NO_TOKEN = 0xFFFF_FFFF
"""How some writers store that there is no such token."""

NO_TOKENIZER = ("none", "no_vocab")
MOST_TOKENS = 1 << 20
"""Known models have up to 262,144."""

MOST_CHARACTERS = 1 << 24
"""Of all tokens together; known models have up to two million."""

LONGEST_TOKEN_CHARACTERS = 4096

END_TEXTS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
)
"""Control tokens that end a turn where a file names none: older files leave it to readers."""


@dataclass(frozen=True)
class Vocabulary:
    """What every kind of tokenizer has."""

    values: Metadata
    pieces: tuple[Piece, ...]
    tokens: Mapping[str, int]  # of the keys of TOKEN_KEYS, those that there are

    def added(self, key: str, name: str, default: bool) -> int | None:
        """The token that is added to texts, None for none. Raises: CheckpointError."""
        if not self.values.flag(key, default):
            return None
        if name not in self.tokens and key in self.values:
            raise self.values.refuse(key, f"false, as there is no {TOKEN_KEYS[name]}")
        return self.tokens.get(name)


@dataclass(frozen=True)
class VocabularyKind:
    """What decides how a kind of vocabulary is read."""

    longest: int  # of a token, in characters
    scored: bool
    default_tokens: Mapping[str, tuple[int, PieceType]]
    build: Callable[[Vocabulary], tuple[dict[str, Any] | bytes, PieceSettings]]
    file: str = "tokenizer.json"


def tokenizer_files(metadata: Mapping[str, Any], where: Path) -> dict[str, bytes]:
    """Tokenizer files by name; none where the file says that it has no tokenizer.

    Raises: CheckpointError.
    """
    values = Metadata(where, metadata)
    name = values.text(MODEL, default=NO_TOKENIZER[0])
    if name in NO_TOKENIZER:
        return {}
    if name not in KINDS:
        raise CheckpointError(
            "this kind of tokenizer is not read",
            where=f"{where}: {MODEL}",
            expected=f"one of {', '.join(KINDS)}",
            found=shown(name),
        )
    kind = KINDS[name]
    vocabulary = _read_vocabulary(values, kind)
    content, settings = kind.build(vocabulary)
    files = {
        kind.file: content,
        "tokenizer_config.json": _tokenizer_configuration(vocabulary, settings),
        "generation_config.json": _generation_configuration(vocabulary),
    }
    encode = msgspec.json.encode
    return {name: x if isinstance(x, bytes) else encode(x) for name, x in files.items()}


def _read_vocabulary(values: Metadata, kind: VocabularyKind) -> Vocabulary:
    texts = _token_texts(values, kind.longest)
    types = np.ones(len(texts), np.int64)
    scores = np.zeros(len(texts), np.float64)
    if kind.scored or TYPES in values:
        types = _numbers(values, TYPES, "iu", len(texts))
    if kind.scored:
        scores = _numbers(values, SCORES, "fi", len(texts))
    if types.min() < min(PieceType) or types.max() > max(PieceType):
        raise values.refuse(TYPES, f"types from {min(PieceType)} to {max(PieceType)}")
    if not np.isfinite(scores).all():
        token = int(np.argmin(np.isfinite(scores)))
        raise CheckpointError(
            "a score is not finite",
            where=f"{values.path}: {SCORES}",
            found=f"{scores[token]} for token {token}",
        )
    pieces = [
        Piece(text, score, _type_of(text, type))
        for text, score, type in zip(texts, scores.tolist(), types.tolist(), strict=True)
    ]
    tokens = _special_tokens(values, pieces, kind.default_tokens)
    least = 1 + max(tokens.values(), default=0)
    while len(pieces) > least and pieces[-1] == Piece(
        padding_text(len(pieces) - 1), pieces[-1].score, PieceType.UNUSED
    ):
        pieces.pop()
    return Vocabulary(values, tuple(pieces), tokens)


def _type_of(text: str, type: int) -> PieceType:
    """A piece's type; in older files the tokens that end a turn are of the normal type."""
    normal = type == PieceType.NORMAL
    return PieceType.CONTROL if normal and text in END_TEXTS else PieceType(type)


def padding_text(token: int) -> str:
    """What stands in a vocabulary for a row of the embedding that is no token."""
    return f"[PAD{token}]"


def _token_texts(values: Metadata, longest: int) -> list[str]:
    """Tokens in order; no two alike. Raises: CheckpointError."""
    texts = _texts(values, TOKENS, MOST_TOKENS)
    if not texts or sum(map(len, texts)) > MOST_CHARACTERS:
        raise values.refuse(TOKENS, f"1 to {MOST_CHARACTERS} characters in all")
    first: dict[str, int] = {}
    for token, spelled in enumerate(texts):
        texts[token] = text = spelled or f"[EMPTY_{token}]"
        if len(text) > longest:
            raise CheckpointError(
                "a token is too long",
                where=f"{values.path}: {TOKENS}[{token}]",
                expected=f"at most {longest} characters",
                found=len(text),
            )
        if first.setdefault(text, token) != token:
            raise CheckpointError(
                "a token is there twice",
                where=f"{values.path}: {TOKENS}[{token}]",
                expected=f"another text than that of token {first[text]}",
                found=shown(text),
            )
    return texts


def _texts(values: Metadata, key: str, most: int) -> list[str]:
    """An array of strings, copied. Raises: CheckpointError."""
    texts = values.texts(key)
    if len(texts) > most or not all(isinstance(text, str) for text in texts):
        raise values.refuse(key, f"an array of at most {most} strings")
    return list(texts)


def _numbers(values: Metadata, key: str, kinds: str, count: int) -> NDArray[Any]:
    """One number for each token. Raises: CheckpointError."""
    array = values.values.get(key)
    expected = f"an array of {count} {'integers' if kinds == 'iu' else 'numbers'}"
    if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds:
        raise values.refuse(key, expected)
    if array.shape != (count,):
        raise CheckpointError(
            "there is not one for each token",
            where=f"{values.path}: {key}",
            expected=expected,
            found=len(array) if array.ndim == 1 else list(array.shape),
        )
    return array


def _special_tokens(
    values: Metadata, pieces: Sequence[Piece], defaults: Mapping[str, tuple[int, PieceType]]
) -> dict[str, int]:
    """Tokens by the part they play, all within the vocabulary. Raises: CheckpointError."""
    tokens: dict[str, int] = {}
    for name, key in TOKEN_KEYS.items():
        token, type = defaults.get(name, (len(pieces), None))
        if key in values:
            number = values.values[key]
            if not (isinstance(number, int) and number == NO_TOKEN):
                tokens[name] = values.integer(key, lowest=0, highest=len(pieces) - 1)
        elif token < len(pieces) and pieces[token].type == type:
            tokens[name] = token
    return tokens


def _scored(vocabulary: Vocabulary) -> tuple[dict[str, Any], PieceSettings]:
    """Pieces that merge by their scores."""
    values, pieces = vocabulary.values, vocabulary.pieces
    byte_texts = {piece.text for piece in pieces if piece.type == PieceType.BYTE}
    if byte_texts and byte_texts != BYTE_PIECES:
        wrong = sorted(byte_texts - BYTE_PIECES)
        raise CheckpointError(
            "the byte tokens are not the 256 bytes",
            where=f"{values.path}: {TOKENS}",
            expected="<0x00> to <0xFF>, or none of type 6",
            found=shown(wrong[0]) if wrong else f"{len(byte_texts)} of them",
        )
    settings = PieceSettings(
        unknown=vocabulary.tokens.get("unknown"),
        begin=vocabulary.added(ADD_BEGIN, "bos", True),
        end=vocabulary.added(ADD_END, "eos", False),
        space_prefix=values.flag(ADD_SPACE, True),
        extra_spaces_removed=values.flag(REMOVE_SPACES, False),
    )
    try:
        return pieces_tokenizer(pieces, settings, most_merges=MOST_MERGES), settings
    except ValueError as error:
        raise CheckpointError(str(error), where=f"{values.path}: {TOKENS}") from error


def _likeliest(vocabulary: Vocabulary) -> tuple[dict[str, Any], PieceSettings]:
    """Pieces that make up a text so that the sum of their scores is the largest: Unigram."""
    values, pieces = vocabulary.values, vocabulary.pieces
    settings = PieceSettings(
        unknown=vocabulary.tokens.get("unknown"),
        begin=vocabulary.added(ADD_BEGIN, "bos", False),
        end=vocabulary.added(ADD_END, "eos", True),
        space_prefix=values.flag(ADD_SPACE, True),
        extra_spaces_removed=values.flag(REMOVE_SPACES, True),
    )
    characters = values.values.get(CHARACTERS)
    if characters is not None and not (
        isinstance(characters, np.ndarray) and characters.dtype.itemsize == 1
    ):
        raise values.refuse(CHARACTERS, "an array of bytes")
    return unigram_tokenizer(pieces, settings, characters), settings


def _merged(vocabulary: Vocabulary) -> tuple[dict[str, Any], PieceSettings]:
    """Bytes that merge by a list."""
    values, pieces = vocabulary.values, vocabulary.pieces
    row = find_pre_tokenizer(values.text(PRE, default="default"), f"{values.path}: {PRE}")
    settings = PieceSettings(
        unknown=vocabulary.tokens.get("unknown"),
        begin=vocabulary.added(ADD_BEGIN, "bos", row.add_begin),
        end=vocabulary.added(ADD_END, "eos", False),
    )
    texts = {piece.text: token for token, piece in enumerate(pieces)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(pieces),
        "normalizer": {"type": "NFC"} if row.normal_form else None,
        "pre_tokenizer": pre_tokenizer_json(row),
        "post_processor": begin_and_end(pieces, settings.begin, settings.end),
        "decoder": BYTE_DECODER,
        "model": merge_model(texts, _read_merges(values, texts), row),
    }, settings


def _longest(vocabulary: Vocabulary) -> tuple[bytes, PieceSettings]:
    """Pieces of bytes, of which always the longest is taken: RWKV's World."""
    begin, where = vocabulary.added(ADD_BEGIN, "bos", False), vocabulary.values.path
    return world_lines(vocabulary.pieces, f"{where}: {TOKENS}"), PieceSettings(begin=begin)


def _read_merges(values: Metadata, texts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs in order; of a pair that comes twice the first counts. Raises: CheckpointError."""
    merges: dict[tuple[str, str], None] = {}
    for index, merge in enumerate(_texts(values, MERGES, MOST_MERGES)):
        cut = merge.find(" ", 1)
        left, right = merge[:cut], merge[cut + 1 :]
        if cut < 0 or left not in texts or right not in texts or left + right not in texts:
            raise CheckpointError(
                "a merge is not of two tokens into a third",
                where=f"{values.path}: {MERGES}[{index}]",
                expected="two tokens with a space between",
                found=shown(merge),
            )
        merges[left, right] = None
    return list(merges)


def _tokenizer_configuration(vocabulary: Vocabulary, settings: PieceSettings) -> dict[str, Any]:
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    content: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": settings.begin is not None,
        "add_eos_token": settings.end is not None,
    }
    for name, written in names.items():
        if name in vocabulary.tokens:
            content[written] = vocabulary.pieces[vocabulary.tokens[name]].text
    templates = chat_templates(vocabulary.values)
    if templates:
        named = [{"name": name, "template": text} for name, text in templates.items()]
        only = list(templates) == ["default"]
        content["chat_template"] = templates["default"] if only else named
    return content


def _generation_configuration(vocabulary: Vocabulary) -> dict[str, Any]:
    tokens = vocabulary.tokens
    ends = [tokens[name] for name in ENDS if name in tokens]
    if "eot" not in tokens:
        ends += [
            token
            for token, piece in enumerate(vocabulary.pieces)
            if piece.type == PieceType.CONTROL and piece.text in END_TEXTS
        ]
    ends = list(dict.fromkeys(ends))
    content: dict[str, Any] = {
        "bos_token_id": tokens.get("bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": tokens.get("padding"),
    }
    return {key: value for key, value in content.items() if value is not None}


KINDS: Mapping[str, VocabularyKind] = {
    "llama": VocabularyKind(
        longest=LONGEST_PIECE_CHARACTERS,
        scored=True,
        default_tokens={
            "unknown": (0, PieceType.UNKNOWN),
            "bos": (1, PieceType.CONTROL),
            "eos": (2, PieceType.CONTROL),
        },
        build=_scored,
    ),
    "t5": VocabularyKind(
        longest=LONGEST_PIECE_CHARACTERS,
        scored=True,
        default_tokens={
            "padding": (0, PieceType.CONTROL),
            "eos": (1, PieceType.CONTROL),
            "unknown": (2, PieceType.UNKNOWN),
        },
        build=_likeliest,
    ),
    "gpt2": VocabularyKind(
        LONGEST_TOKEN_CHARACTERS, scored=False, default_tokens={}, build=_merged
    ),
    "rwkv": VocabularyKind(
        LONGEST_TOKEN_CHARACTERS,
        scored=False,
        default_tokens=dict.fromkeys(("bos", "eos"), (0, PieceType.CONTROL)),
        build=_longest,
        file=WORLD_FILE,
    ),
}
"""Kinds of tokenizer.ggml.model."""
