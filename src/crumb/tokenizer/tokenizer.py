"""Text to tokens and back, through the tokenizers library.

In: a model's files, with tokenizer.json, LLaMA's tokenizer.model or RWKV's World vocabulary. Out: a
Tokenizer.
Refuses models with neither, files that the library cannot read, special tokens outside the
model's vocabulary, and text that is not Unicode. Warns where a text would begin twice, and where
files contradict each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from crumb.errors import CheckpointError, ModelNotFound, UsageError, warn
from crumb.files.model_files import CONFIGURATION, WORLD_FILE, ModelFiles, optional_json
from crumb.tokenizer.scored_pieces import SPACE
from crumb.tokenizer.sentencepiece_model import convert_sentencepiece
from crumb.tokenizer.world import END, WorldVocabulary, read_world

BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
"""A piece that is one byte. A run of them is decoded as a whole: if one byte of it is wrong,
the tokenizers library replaces them all, so no part of a run is certain before it ends."""


class TokenKind(Enum):
    """What a token is to `decode`."""

    TEXT = "text"
    BYTE = "byte"
    HIDDEN = "hidden"  # passed over: special, or a number that is no token


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer."""

    backend: tokenizers.Tokenizer
    end_tokens: frozenset[int]
    begin_token: int | None
    vocabulary: int | None = None  # tokens the model has; None: its configuration does not say
    path: Path | None = None  # the directory it was read from, for messages
    world: WorldVocabulary | None = None  # which encodes in place of the backend

    @cached_property
    def special_tokens(self) -> frozenset[int]:
        """Tokens that `decode` passes over."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(token for token, entry in added.items() if entry.special)

    @cached_property
    def kinds(self) -> Mapping[int, TokenKind]:
        """What each token is; any number may be asked for."""
        return _Kinds(self)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of a text, with the special tokens that the tokenizer itself adds.

        `special=False` leaves those out, for a text that has them written out, as chat templates
        do; written out they are recognized either way.
        Raises: UsageError for text with lone surrogates, CheckpointError for a tokenizer that
        does not belong to its model.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                "this text is not Unicode",
                found=f"a lone surrogate at character {error.start}",
            ) from error
        with _library_failures(self.path, "the tokenizer fails on a text"):
            ids: list[int] = (
                self.backend.encode(text, add_special_tokens=special).ids
                if self.world is None
                else self.world.encode(text)
            )
        if self.vocabulary is not None and max(ids, default=0) >= self.vocabulary:
            raise CheckpointError(
                "the tokenizer makes a token that the model does not have",
                where=self.path,
                expected=f"tokens below {self.vocabulary}",
                found=max(ids),
                do="Use the tokenizer files that the model was published with",
            )
        if special and self.begin_token is not None and ids[:2] == [self.begin_token] * 2:
            written = self.piece(self.begin_token)
            warn(
                f"the text begins with {written}, which the tokenizer adds itself, so the model "
                "reads it twice",
                where=self.path,
                do=f"Leave {written} out of the text",
            )
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special tokens."""
        text: str = self.backend.decode(tokens)
        return text

    def piece(self, token: int) -> str | None:
        """A token as the vocabulary writes it; None for a number that is no token."""
        written: str | None = self.backend.id_to_token(token)
        return written

    def numbers(self, texts: Iterable[str]) -> frozenset[int]:
        """The tokens among some texts."""
        tokens = (self.backend.token_to_id(text) for text in texts)
        return frozenset(token for token in tokens if token is not None)

    def token_text(self, token: int) -> str:
        """One token as text, to be read by people: a special token as it is written out."""
        piece = self.piece(token)
        if piece is None or token in self.special_tokens:
            return piece or ""
        text = self.decode([token])
        drops_space = piece.startswith(SPACE) and not text.startswith(" ")
        return f" {text}" if drops_space else text


class _Kinds(dict[int, TokenKind]):
    """Those that were asked for and have text, so that each is looked up once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, token: int) -> TokenKind:
        special = token in self._tokenizer.special_tokens
        piece = None if special else self._tokenizer.piece(token)
        if piece is None:
            return TokenKind.HIDDEN
        self[token] = TokenKind.BYTE if BYTE_TOKEN.fullmatch(piece) else TokenKind.TEXT
        return self[token]


def load_tokenizer(files: ModelFiles) -> Tokenizer:
    """The tokenizer of a model. Raises: ModelNotFound, CheckpointError."""
    path, settings = files.path, optional_json(files, "tokenizer_config.json")
    content = files.read("tokenizer.json")
    listed, world = files.read(WORLD_FILE) if content is None else None, None
    if content is not None:
        with _library_failures(path / "tokenizer.json", "the tokenizer cannot be read"):
            backend = tokenizers.Tokenizer.from_buffer(content)
    elif (path / "tokenizer.model").exists():
        backend = convert_sentencepiece(
            path / "tokenizer.model",
            add_begin=settings.get("add_bos_token") is not False,
            add_end=settings.get("add_eos_token") is True,
        )
        _add_tokens(backend, files, settings)
    elif listed is not None:
        world, backend = read_world(listed, path)
    else:
        raise ModelNotFound("no tokenizer in this directory", where=path, expected="tokenizer.json")
    backend.no_truncation()
    backend.no_padding()
    model = optional_json(files, CONFIGURATION)
    vocabulary = model.get("vocab_size")
    size = vocabulary if type(vocabulary) is int else None
    configurations = (optional_json(files, "generation_config.json"), model)
    special = SpecialTokens(backend, configurations, settings, size, path, world)
    begins, ends = special.numbers("bos"), special.numbers("eos")
    if world is not None:  # whatever numbers a configuration has been left with
        begins, ends = [END], [END, *ends]
    begin = next(iter(begins or special.named("bos")), None)
    if content is not None:
        _tell_contradiction(backend, settings, begin, path)
    return Tokenizer(backend, frozenset([*ends, *special.named("eos")]), begin, size, path, world)


@dataclass(frozen=True)
class SpecialTokens:
    """What the files of a model say of the tokens that begin and end its texts."""

    backend: tokenizers.Tokenizer
    configurations: Sequence[Mapping[str, Any]]  # generation_config.json goes before config.json
    settings: Mapping[str, Any]  # tokenizer_config.json
    vocabulary: int | None
    path: Path
    world: WorldVocabulary | None = None

    def numbers(self, kind: str) -> list[int]:
        """Tokens that the configurations number. Raises: CheckpointError for one that is none."""
        tokens: list[int] = []
        for configuration in self.configurations:
            value = configuration.get(f"{kind}_token_id")
            ids = value if isinstance(value, list) else [value]
            tokens += [token for token in ids if type(token) is int and token >= 0]
        for token in tokens:
            if not self._is_inside(token):
                raise CheckpointError(
                    "a special token lies outside the vocabulary",
                    where=self.path,
                    expected=f"below {self.vocabulary}",
                    found=token,
                )
        return tokens

    def named(self, kind: str) -> list[int]:
        """The token that the tokenizer's own settings name."""
        name = self.settings.get(f"{kind}_token")
        content = name.get("content") if isinstance(name, dict) else name
        find = self.backend.token_to_id if self.world is None else self.world.token_of
        token = find(content) if isinstance(content, str) else None
        return [] if token is None or not self._is_inside(token) else [token]

    def _is_inside(self, token: int) -> bool:
        return self.vocabulary is None or token < self.vocabulary


def _tell_contradiction(
    backend: tokenizers.Tokenizer, settings: Mapping[str, Any], begin: int | None, path: Path
) -> None:
    """Warn where add_bos_token says other than tokenizer.json does, which is followed."""
    asked = settings.get("add_bos_token")
    if not isinstance(asked, bool) or begin is None:
        return
    with _library_failures(path, "the tokenizer fails on a text"):
        adds = backend.encode("").ids[:1] == [begin]
    if adds is not asked:
        warn(
            f"add_bos_token is {str(asked).lower()}, but tokenizer.json "
            f"{'adds' if adds else 'does not add'} {backend.id_to_token(begin)} to a text: "
            "tokenizer.json is followed",
            where=path / "tokenizer_config.json",
        )


def _add_tokens(
    backend: tokenizers.Tokenizer, files: ModelFiles, settings: Mapping[str, Any]
) -> None:
    """Tokens that were added to a tokenizer.model; they are listed in JSON files beside it."""
    added: dict[str, tuple[Any, bool]] = {
        text: (token, True) for text, token in optional_json(files, "added_tokens.json").items()
    }
    decoder = settings.get("added_tokens_decoder")
    for token, entry in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and token.isdecimal():
            added[entry["content"]] = (int(token[:9]), entry.get("special") is not False)
    in_order = sorted(added.items(), key=lambda item: str(item[1][0]).zfill(9))
    for text, (token, special) in in_order:
        if backend.token_to_id(text) is None:
            backend.add_tokens([tokenizers.AddedToken(text, normalized=False, special=special)])
        if backend.token_to_id(text) != token:
            raise CheckpointError(
                "an added token does not continue the vocabulary",
                where=files.path,
                expected=f"{backend.token_to_id(text)} for {text[:40]!r}",
                found=token,
            )


@contextmanager
def _library_failures(where: Path | None, what: str) -> Iterator[None]:
    """The library's errors as ours: it raises bare Exception, and its panics are not even that."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise CheckpointError(f"{what}: {str(error)[:200]}", where=where) from error
