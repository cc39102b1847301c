"""RWKV's World vocabulary through GGUF metadata and back: the same tokens, the same templates.

In: a small vocabulary in the file's own form. Out: tokens of texts by both; what is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recurrent_models import VOCABULARY, vocabulary_lines

from crumb.checkpoints.gguf.tokenizer.reader import tokenizer_files
from crumb.checkpoints.gguf.tokenizer.templates import WORLD
from crumb.checkpoints.gguf.tokenizer.writer import tokenizer_metadata
from crumb.errors import CheckpointError
from crumb.files.model_files import WORLD_FILE, MadeFiles
from crumb.tokenizer.chat_template import load_chat_template
from crumb.tokenizer.tokenizer import Tokenizer, load_tokenizer

HERE = Path("here")
CONFIGURATION = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}


def made(files: dict[str, bytes]) -> MadeFiles:
    return MadeFiles(HERE, {"config.json": json.dumps(CONFIGURATION).encode(), **files})


def published() -> MadeFiles:
    return made({WORLD_FILE: ("\n".join(vocabulary_lines()) + "\n").encode()})


def metadata(**changes: Any) -> dict[str, Any]:
    return tokenizer_metadata(published(), CONFIGURATION) | changes


def back(values: dict[str, Any]) -> Tokenizer:
    return load_tokenizer(made(tokenizer_files(values, HERE)))


def test_tokens_are_the_same_through_a_gguf_file_and_back() -> None:
    values = metadata()
    assert values["tokenizer.ggml.model"] == "rwkv"
    assert len(values["tokenizer.ggml.tokens"]) == VOCABULARY
    one, other = load_tokenizer(published()), back(values)
    for text in ("then the 世界!\n\n", "\x00\x7f\\x41 'say \"'", "👍👩 é", ""):
        assert other.encode(text) == one.encode(text)
        assert other.decode(other.encode(text)) == text
    assert (other.begin_token, other.end_tokens) == (0, {0})


def test_pieces_are_written_as_python_writes_bytes() -> None:
    tokens = metadata()["tokenizer.ggml.tokens"]
    assert tokens[0] == "<s>"
    assert tokens[1:3] == ["\\x00", "\\x01"]
    assert {"the", "it's", 'say "', "\\n\\n", "\\\\", "\\xe7\\x95\\x8c!"} <= {*tokens}
    assert tokens[-1] == f"[PAD{VOCABULARY - 1}]"


def test_turns_end_where_a_file_says_so_and_its_templates_name_is_a_template() -> None:
    ends = {"tokenizer.ggml.eot_token_id": 260, "tokenizer.chat_template": "rwkv-world"}
    files = made(tokenizer_files(metadata(**ends), HERE))
    assert load_tokenizer(files).end_tokens == {0, 260}
    template = load_chat_template(files)
    assert json.loads(files.read("tokenizer_config.json") or b"")["chat_template"] == WORLD
    messages = [
        {"role": "system", "content": "Be brief. "},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "12?"},
    ]
    expected = "System: Be brief.\n\nUser: Hi\n\nAssistant: Hello\n\nUser: 12?\n\nAssistant:"
    assert template.render(messages) == expected


def with_piece(place: int, text: str, type: int = 1) -> dict[str, Any]:
    values = metadata()
    values["tokenizer.ggml.tokens"][place] = text
    types = values["tokenizer.ggml.token_type"]
    types[place] = type
    return values | {"tokenizer.ggml.token_type": np.asarray(types)}


@pytest.mark.parametrize(
    ("place", "text", "type", "words"),
    [
        (200, "<|x|>", 3, "has but one"),
        (260, "世界", 1, "not written as bytes"),
        (100, "\\x41\\x42", 1, "a byte has no token"),
    ],
)
def test_what_is_no_vocabulary_of_bytes_is_refused(
    place: int, text: str, type: int, words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        back(with_piece(place, text, type))
