"""The tokens of a model directory, as GGUF can store them.

In: tokenizer.json, or tokenizer.model with the tokens that JSON files add to it. Out: Tokens.
A tokenizer.json that GGUF cannot express is passed over where there is a tokenizer.model.
Refuses tokenizers that GGUF's kinds, scored, likeliest or longest pieces and merges over bytes,
cannot express.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from crumb.architectures.configuration import shown
from crumb.checkpoints.gguf.tokenizer.pre_tokenizers import (
    is_over_bytes,
    name_of_pre_tokenizer,
)
from crumb.checkpoints.gguf.tokenizer.reader import padding_text
from crumb.checkpoints.gguf.tokenizer.unigram import unigram_characters, unigram_spaces
from crumb.checkpoints.gguf.tokenizer.world import world_pieces
from crumb.errors import CheckpointError, ModelNotFound, UsageError
from crumb.files.model_files import WORLD_FILE, ModelFiles, optional_json, parse_json
from crumb.tokenizer.scored_pieces import (
    BYTE_PIECES,
    SPACE,
    Piece,
    PieceSettings,
    PieceType,
    merges_by_score,
    normalizer,
)
from crumb.tokenizer.sentencepiece import parse_sentencepiece
from crumb.tokenizer.world import END

WORLD = "rwkv"
"""The kind of a World vocabulary, which has nothing that goes before its pieces."""

JSON_FILE, PIECES_FILE = "tokenizer.json", "tokenizer.model"
OTHER_CONTAINER = "Export to another container, which keeps the tokenizer's files as they are"

NORMALIZERS = [
    (normalizer(prefix, removed), (prefix, removed))
    for prefix in (True, False)
    for removed in (True, False)
]
NORMALIZERS += [(normalizer(False, False)["normalizers"][0], (False, False))]
"""How pieces may have their spaces, and the two settings of it."""


@dataclass(frozen=True)
class Tokens:
    """A tokenizer, of either kind."""

    pieces: tuple[Piece, ...]
    settings: PieceSettings
    pre: str
    merges: tuple[tuple[str, str], ...] | None  # None: they follow the scores
    begin: int | None = None  # where the configuration names no such token
    end: int | None = None
    characters: NDArray[np.uint8] | None = None  # of Unigram: what is done to them first, compiled


def read_tokens(files: ModelFiles, options: Mapping[str, Any]) -> Tokens:
    """Tokens from the one file or the other; `options` is tokenizer_config.json.

    Raises: ModelNotFound, CheckpointError, UsageError.
    """
    content, pieces, listed = map(files.read, (JSON_FILE, PIECES_FILE, WORLD_FILE))
    if content is not None:
        try:
            return _read_json(content, files.path / JSON_FILE)
        except UsageError:
            if pieces is None:
                raise
    if pieces is None and listed is not None:
        return Tokens(world_pieces(listed, files.path), PieceSettings(), WORLD, None, END, END)
    if pieces is None:
        raise ModelNotFound("no tokenizer in this directory", where=files.path, expected=JSON_FILE)
    return _read_pieces(pieces, files, options)


def no_token(token: int, score: float) -> Piece:
    """What fills a place of the vocabulary that is no token's."""
    return Piece(padding_text(token), score, PieceType.UNUSED)


def _read_json(content: bytes, where: Path) -> Tokens:
    """Raises: CheckpointError, UsageError."""
    try:
        library = tokenizers.Tokenizer.from_buffer(content)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library's panics are no Exception
        raise CheckpointError(
            f"the tokenizer cannot be read: {str(error)[:200]}", where=where
        ) from error
    parsed = parse_json(content, where)
    model = parsed["model"]
    if isinstance(library.model, tokenizers.models.Unigram):
        return _unigram(parsed, library.get_added_tokens_decoder(), where)
    changes = [name for name in MODEL_DEFAULTS if model.get(name)]
    if not isinstance(library.model, tokenizers.models.BPE) or changes:
        raise UsageError(
            "GGUF cannot express this kind of tokenizer",
            where=where,
            expected="byte-pair encoding or Unigram",
            found=shown(changes or type(library.model).__name__),
            do=OTHER_CONTAINER,
        )
    merges = [_pair(merge) for merge in model["merges"]]
    over_bytes = is_over_bytes(parsed.get("pre_tokenizer"))
    pieces = _pieces_of_json(model, library.get_added_tokens_decoder(), over_bytes, where)
    settings = _settings_of_json(parsed, pieces, where)
    if over_bytes:
        return _over_bytes(parsed, pieces, settings, merges, where)
    return _by_score(parsed, pieces, settings, merges, where)


def _unigram(
    parsed: Mapping[str, Any], added: Mapping[int, tokenizers.AddedToken], where: Path
) -> Tokens:
    """Pieces with the scores of their own. Raises: CheckpointError, UsageError."""
    model = parsed["model"]
    normal = {
        token: Piece(text, float(score), PieceType.NORMAL)
        for token, (text, score) in enumerate(model["vocab"])
    }
    if model.get("byte_fallback"):
        normal |= {
            token: replace(piece, type=PieceType.BYTE)
            for token, piece in normal.items()
            if piece.text in BYTE_PIECES
        }
    for token, entry in added.items():
        type = PieceType.CONTROL if entry.special else PieceType.USER_DEFINED
        score = normal[token].score if token in normal else 0.0
        normal[token] = Piece(entry.content, score, type)
    unknown = model.get("unk_id")
    if unknown is not None:
        normal[unknown] = replace(normal[unknown], type=PieceType.UNKNOWN)
    pieces = _filled(normal, where)
    prefix, removed = unigram_spaces(parsed, where, OTHER_CONTAINER)
    settings = replace(
        _settings_of_json(parsed, pieces, where),
        unknown=unknown,
        space_prefix=prefix,
        extra_spaces_removed=removed,
    )
    characters = unigram_characters(parsed, where, OTHER_CONTAINER)
    return Tokens(pieces, settings, "default", None, characters=characters)


MODEL_DEFAULTS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
"""What must not be set."""


def _pair(merge: Any) -> tuple[str, str]:
    """A merge, which older files write as one text."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _pieces_of_json(
    model: Mapping[str, Any],
    added: Mapping[int, tokenizers.AddedToken],
    over_bytes: bool,
    where: Path,
) -> tuple[Piece, ...]:
    """The vocabulary in the order of its numbers, holes filled. Raises: CheckpointError."""
    texts = {token: text for text, token in model["vocab"].items()}
    types = dict.fromkeys(texts, PieceType.NORMAL)
    if len(texts) != len(model["vocab"]):
        raise CheckpointError("a token has two texts", where=where)
    if model.get("byte_fallback"):
        types |= {t: PieceType.BYTE for t, text in texts.items() if text in BYTE_PIECES}
    for token, entry in added.items():
        text = entry.content
        spaced = text.replace(SPACE, " ")
        # Readers look for these tokens in the text as it is, before its spaces are written as ▁.
        keeps = entry.special or over_bytes or spaced in model["vocab"]
        texts[token] = text if keeps else spaced
        types[token] = PieceType.CONTROL if entry.special else PieceType.USER_DEFINED
        if text == model.get("unk_token"):
            types[token] = PieceType.UNKNOWN
    return _filled({token: Piece(text, 0.0, types[token]) for token, text in texts.items()}, where)


def _filled(pieces: Mapping[int, Piece], where: Path) -> tuple[Piece, ...]:
    """Pieces in the order of their tokens, without holes. Raises: CheckpointError."""
    size = 1 + max(pieces, default=-1)
    if size > LARGEST_HOLE * (1 + len(pieces)) or min(pieces, default=0) < 0:
        raise CheckpointError(
            "a token's number is far from the others", where=where, found=shown(size - 1)
        )
    lowest = min((piece.score for piece in pieces.values()), default=0.0)
    filled = tuple(pieces.get(token) or no_token(token, lowest) for token in range(size))
    if len({piece.text for piece in filled}) != size:
        raise CheckpointError("two tokens have the same text", where=where)
    return filled


LARGEST_HOLE = 16
"""Numbers for each token, so that one large number does not fill the memory."""


def _settings_of_json(
    parsed: Mapping[str, Any], pieces: Sequence[Piece], where: Path
) -> PieceSettings:
    """The tokens that play a part. Raises: UsageError."""
    numbers = {piece.text: token for token, piece in enumerate(pieces)}
    before, after = _template(parsed.get("post_processor"), where)
    unknown = parsed["model"].get("unk_token")
    return PieceSettings(
        unknown=None if unknown is None else numbers.get(unknown),
        begin=None if before is None else numbers.get(before),
        end=None if after is None else numbers.get(after),
    )


def _template(processor: Any, where: Path) -> tuple[str | None, str | None]:
    """The tokens in front of a text and behind it. Raises: UsageError."""
    steps = [] if processor is None else processor.get("processors", [processor])
    steps = [step for step in steps if step["type"] != "ByteLevel"]
    if not steps:
        return None, None
    if len(steps) == 1 and steps[0]["type"] == "TemplateProcessing":
        parts = steps[0]["single"]
        kinds = ["S" if "SpecialToken" in part else "A" for part in parts]
        if "".join(kinds) in ("A", "SA", "AS", "SAS"):
            names = [part.get("SpecialToken", {}).get("id") for part in parts]
            return names[0], names[-1]
    raise UsageError(
        "GGUF cannot express what this tokenizer adds to texts",
        where=where,
        expected="at most one token in front and one behind",
        found=shown(processor),
        do=OTHER_CONTAINER,
    )


def _over_bytes(
    parsed: Mapping[str, Any],
    pieces: tuple[Piece, ...],
    settings: PieceSettings,
    merges: Sequence[tuple[str, str]],
    where: Path,
) -> Tokens:
    """Bytes that merge by a list. Raises: UsageError."""
    form = parsed.get("normalizer")
    steps = [] if form is None else form.get("normalizers", [form])
    names = [step["type"] for step in steps]
    spaced = next((pair for pair in merges if " " in "".join(pair)), None)
    if names not in ([], ["NFC"]) or spaced is not None:
        raise UsageError(
            "GGUF cannot express this tokenizer",
            where=where,
            expected="bytes as they are, or in the form NFC",
            found=shown(spaced or names),
            do=OTHER_CONTAINER,
        )
    pre = name_of_pre_tokenizer(
        parsed["pre_tokenizer"],
        whole_words=bool(parsed["model"].get("ignore_merges")),
        normal_form=names == ["NFC"],
        where=where,
    )
    return Tokens(pieces, settings, pre, tuple(dict.fromkeys(merges)))


def _by_score(
    parsed: Mapping[str, Any],
    pieces: tuple[Piece, ...],
    settings: PieceSettings,
    merges: Sequence[tuple[str, str]],
    where: Path,
) -> Tokens:
    """Pieces whose scores give the order of the merges. Raises: UsageError."""
    prefix, removed = _spaces(parsed, pieces, where)
    settings = replace(settings, space_prefix=prefix, extra_spaces_removed=removed)
    ranks: dict[str, int] = {}
    for left, right in merges:
        ranks.setdefault(left + right, len(ranks))
    last = len(ranks) + len(pieces)
    scored = tuple(
        replace(piece, score=-float(ranks[piece.text]))
        if piece.type == PieceType.NORMAL and piece.text in ranks
        else replace(piece, score=-float(last if piece.type != PieceType.BYTE else 0))
        for piece in pieces
    )
    normal = {piece.text for piece in scored if piece.type == PieceType.NORMAL}
    listed = [pair for pair in dict.fromkeys(merges) if {*pair, "".join(pair)} <= normal]
    products = ["".join(pair) for pair in listed]
    in_order = [ranks[text] for text in products] == sorted(ranks[text] for text in products)
    if not in_order or set(listed) != set(merges_by_score(scored)):
        raise UsageError(
            "GGUF cannot express this tokenizer's merges",
            where=where,
            expected="every pair of tokens that makes a token, one such token after the other",
            found="merges left out" if in_order else "merges in another order",
            do=OTHER_CONTAINER,
        )
    return Tokens(scored, settings, "default", None)


def _spaces(parsed: Mapping[str, Any], pieces: Sequence[Piece], where: Path) -> tuple[bool, bool]:
    """Whether a space is put in front of texts, and extra ones removed. Raises: UsageError.

    Metaspace leaves a text alone that starts with a space, and as "first" what follows a special
    token; GGUF has no words for either, and its readers put the space there too.
    """
    form, pre = parsed.get("normalizer"), parsed.get("pre_tokenizer")
    if pre is not None and pre.get("type") == "Split":
        # Behind a normalizer that leaves no spaces it has nothing to split at.
        pre = None if pre["pattern"] == {"String": " "} else pre
    if pre is None:
        for written, spaces in NORMALIZERS:
            if form == written:
                return spaces
    if form is None and pre is not None and pre.get("type") == "Metaspace":
        prefix = pre.get("prepend_scheme", "always" if pre.get("add_prefix_space", True) else "")
        inside = any(SPACE in piece.text[1:] for piece in pieces if piece.type == PieceType.NORMAL)
        if pre["replacement"] == SPACE and not (inside and pre.get("split", True)):
            return prefix in ("always", "first"), False
    raise UsageError(
        "GGUF cannot express what this tokenizer does to spaces",
        where=where,
        expected=f"spaces as {SPACE}, with or without one in front",
        found=shown(form or pre),
        do=OTHER_CONTAINER,
    )


def _read_pieces(content: bytes, files: ModelFiles, options: Mapping[str, Any]) -> Tokens:
    """A tokenizer.model with the tokens added to it. Raises: CheckpointError."""
    model = parse_sentencepiece(content, files.path / PIECES_FILE)
    pieces = dict(enumerate(model.pieces))
    lowest = min(piece.score for piece in model.pieces)
    for token, text, special in _added(files, options):
        if token >= len(model.pieces):
            type = PieceType.CONTROL if special else PieceType.USER_DEFINED
            pieces[token] = Piece(text, lowest, type)
    settings = model.piece_settings(
        add_begin=options.get("add_bos_token") is not False,
        add_end=options.get("add_eos_token") is True,
    )
    both = model.piece_settings(add_begin=True, add_end=True)
    in_order = _filled(pieces, files.path)
    return Tokens(in_order, settings, "default", None, both.begin, both.end)


def _added(files: ModelFiles, options: Mapping[str, Any]) -> Iterator[tuple[int, str, bool]]:
    """Token, text and whether it is special, of what JSON files add to a tokenizer.model."""
    for text, token in optional_json(files, "added_tokens.json").items():
        if type(token) is int:
            yield token, text, True
    decoder = options.get("added_tokens_decoder")
    for number, entry in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and number.isdecimal():
            yield int(number[:9]), entry["content"], entry.get("special") is not False
