"""The tokenizer of a model directory as the metadata of a GGUF file.

In: tokenizer.json or tokenizer.model, and the JSON files beside it. Out: key-values, strings as
list[str], scores as float32 and types as int32 arrays, token numbers as int (u32), flags as bool.
Rows of the embedding that are no token become unused tokens "[PAD<n>]", as readers expect.
Refuses tokenizers that GGUF's kinds cannot express, and tokens that the model does not have.
Source: the GGUF format description.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from crumb.architectures.configuration import shown
from crumb.checkpoints.gguf.tokenizer.reader import (
    ADD_BEGIN,
    ADD_END,
    ADD_SPACE,
    CHARACTERS,
    ENDS,
    MERGES,
    MODEL,
    PRE,
    REMOVE_SPACES,
    SCORES,
    TOKEN_KEYS,
    TOKENS,
    TYPES,
)
from crumb.checkpoints.gguf.tokenizer.sources import WORLD, Tokens, no_token, read_tokens
from crumb.checkpoints.gguf.tokenizer.templates import TEMPLATE, TEMPLATES
from crumb.errors import CheckpointError
from crumb.files.model_files import ModelFiles, optional_json

TEMPLATE_FILE = "chat_template.jinja"


def tokenizer_metadata(files: ModelFiles, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Key-values of a model's tokenizer; the vocabulary has the size the configuration says.

    Raises: ModelNotFound, CheckpointError, UsageError for what GGUF cannot express.
    """
    options = optional_json(files, "special_tokens_map.json")
    options |= optional_json(files, "tokenizer_config.json")
    tokens = _padded(read_tokens(files, options), configuration, files.path)
    kind = "gpt2" if tokens.merges is not None else "llama"
    metadata: dict[str, Any] = {MODEL: kind, PRE: tokens.pre}
    if tokens.pre == WORLD:
        metadata = {MODEL: WORLD}
    if tokens.characters is not None:
        metadata[MODEL] = "t5"
        metadata |= {CHARACTERS: tokens.characters} if len(tokens.characters) else {}
    metadata[TOKENS] = [piece.text for piece in tokens.pieces]
    metadata[TYPES] = np.array([piece.type for piece in tokens.pieces], np.int32)
    if tokens.merges is None and tokens.pre != WORLD:
        metadata[SCORES] = np.array([piece.score for piece in tokens.pieces], np.float32)
        metadata[ADD_SPACE] = tokens.settings.space_prefix
        metadata[REMOVE_SPACES] = tokens.settings.extra_spaces_removed
    elif tokens.merges is not None:
        metadata[MERGES] = [" ".join(pair) for pair in tokens.merges]
    generation = optional_json(files, "generation_config.json")
    named = {key: value for key, value in configuration.items() if value is not None} | generation
    metadata |= _special_tokens(tokens, named, options, files.path)
    metadata[ADD_BEGIN] = tokens.settings.begin is not None
    metadata[ADD_END] = tokens.settings.end is not None
    return metadata | _chat_templates(files, options)


def _padded(tokens: Tokens, configuration: Mapping[str, Any], where: Path) -> Tokens:
    """With one token for each row of the embedding. Raises: CheckpointError."""
    size = configuration.get("vocab_size")
    count = len(tokens.pieces)
    if not isinstance(size, int) or size == count:
        return tokens
    if size < count:
        raise CheckpointError(
            "the tokenizer has more tokens than the model",
            where=where,
            expected=f"at most {size}",
            found=count,
            do="Use the tokenizer files that the model was published with",
        )
    padding = tuple(no_token(token, tokens.pieces[-1].score) for token in range(count, size))
    return replace(tokens, pieces=tokens.pieces + padding)


def _special_tokens(
    tokens: Tokens, named: Mapping[str, Any], options: Mapping[str, Any], where: Path
) -> dict[str, int]:
    """Numbers by key. Raises: CheckpointError."""
    numbers = {piece.text: token for token, piece in enumerate(tokens.pieces)}

    def find(name: str) -> list[int]:
        entry_ids = named.get(f"{name}_token_id")
        ids = entry_ids if isinstance(entry_ids, list) else [entry_ids]
        listed = [token for token in ids if type(token) is int and token >= 0]
        entry = options.get(f"{name}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        if listed or not isinstance(text, str) or text not in numbers:
            return listed
        return [numbers[text]]

    begin, end = tokens.settings.begin, tokens.settings.end
    ends = list(dict.fromkeys([*_given(end), *(find("eos") or _given(tokens.end))]))
    parts: dict[str, list[int]] = {
        "bos": [*_given(begin), *find("bos"), *_given(tokens.begin)],
        **{name: ends[place : place + 1] for place, name in enumerate(ENDS)},
        "unknown": [*_given(tokens.settings.unknown), *find("unk")],
        "padding": find("pad"),
    }
    special = {TOKEN_KEYS[name]: token for name, ids in parts.items() for token in ids[:1]}
    for key, token in special.items():
        if token >= len(tokens.pieces):
            raise CheckpointError(
                "a special token lies outside the vocabulary",
                where=f"{where}: {key}",
                expected=f"below {len(tokens.pieces)}",
                found=token,
            )
    return special


def _given(token: int | None) -> list[int]:
    return [] if token is None else [token]


def _chat_templates(files: ModelFiles, options: Mapping[str, Any]) -> dict[str, Any]:
    """Raises: CheckpointError."""
    templates, written = options.get("chat_template"), files.read(TEMPLATE_FILE)
    if written is not None:
        try:
            templates = written.decode()
        except UnicodeDecodeError as error:
            where = files.path / TEMPLATE_FILE
            raise CheckpointError(f"cannot be read: {error}", where=where) from error
    if isinstance(templates, str):
        return {TEMPLATE: templates}
    named: dict[str, str] = {}
    for entry in templates or ():
        match entry:
            case {"name": str(name), "template": str(text)}:
                named[name] = text
            case _:
                raise CheckpointError(
                    "chat_template is not what it should be",
                    where=files.path / "tokenizer_config.json",
                    expected="a text, or a list of objects with a name and a template",
                    found=shown(entry),
                )
    keys = {name: TEMPLATE if name == "default" else f"{TEMPLATE}.{name}" for name in named}
    metadata: dict[str, Any] = {keys[name]: text for name, text in named.items()}
    others = [name for name in named if name != "default"]
    return metadata | ({TEMPLATES: others} if others else {})
