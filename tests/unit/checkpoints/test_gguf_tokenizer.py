"""Tokenizers through GGUF metadata and back: the same tokens, and what the files say.

The byte-level tokenizer is the embedded model's, the scored one SentencePiece's own of
tests/unit/run, whose record of encodings holds for what comes back as well.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from gguf_vocabularies import (
    BYTE,
    CONTROL,
    EMBEDDED,
    GGML,
    HERE,
    NORMAL,
    NOVELLA,
    SENTENCEPIECE,
    SMALL,
    SMALL_SCORED,
    UNKNOWN,
    UNUSED,
    USER,
    bytes_over,
    library,
    made,
    novella_metadata,
    over_bytes,
    scored,
    small,
)
from hypothesis import example, given
from hypothesis import strategies as st

from crumb.checkpoints.gguf.container import read_gguf, write_container
from crumb.checkpoints.gguf.tokenizer.pre_tokenizers import ROWS, pre_tokenizer_json
from crumb.checkpoints.gguf.tokenizer.reader import TOKEN_KEYS, tokenizer_files
from crumb.checkpoints.gguf.tokenizer.writer import tokenizer_metadata
from crumb.files.model_files import MadeFiles
from crumb.tokenizer.sentencepiece_model import convert_sentencepiece
from crumb.tokenizer.tokenizer import load_tokenizer

RECORD = json.loads(SENTENCEPIECE.with_suffix(".json").read_text())


TEXTS = st.text() | st.lists(
    st.sampled_from(["<s>", "</s>", " ", "  ", "\n", "\r\n", "\t", "the", " The", "é", "🙂", "17"])
).map("".join)


@cache
def novella_both() -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
    """The embedded tokenizer, and what comes back of it."""
    theirs = tokenizers.Tokenizer.from_file(str(NOVELLA / "tokenizer.json"))
    return theirs, library(tokenizer_files(novella_metadata(), HERE))


@cache
def scored_both() -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
    """The tokenizer of tokenizer-400.model, and what comes back of it."""
    return convert_sentencepiece(SENTENCEPIECE), library(tokenizer_files(scored(), HERE))


def test_the_embedded_tokenizer_comes_back_as_it_was() -> None:
    theirs, ours = (json.loads(one.to_str()) for one in novella_both())
    for part in ("added_tokens", "normalizer", "pre_tokenizer", "decoder", "model"):
        assert ours[part] == theirs[part], part


@pytest.mark.parametrize("name", ["excerpt-calibration.txt", "excerpt-evaluation.txt"])
@pytest.mark.parametrize("both", [novella_both, scored_both])
def test_a_whole_text_gets_the_same_tokens(both: Any, name: str) -> None:
    text = (EMBEDDED / "texts" / name).read_text(encoding="utf-8")
    theirs, ours = both()
    tokens = theirs.encode(text).ids
    assert ours.encode(text).ids == tokens
    assert ours.decode(tokens) == theirs.decode(tokens)


@given(TEXTS)
@example("<s>a</s> b")
def test_any_text_gets_the_same_tokens_and_comes_back_the_same(text: str) -> None:
    for both in (novella_both, scored_both):
        theirs, ours = both()
        for special in (True, False):
            tokens = theirs.encode(text, add_special_tokens=special).ids
            assert ours.encode(text, add_special_tokens=special).ids == tokens
        assert ours.decode(tokens) == theirs.decode(tokens)


@pytest.mark.parametrize(("text", "tokens", "decoded"), RECORD)
def test_scored_pieces_get_the_tokens_that_sentencepiece_recorded(
    text: str, tokens: list[int], decoded: str
) -> None:
    ours = scored_both()[1]
    assert ours.encode(text).ids == [1, *tokens]
    assert ours.decode([1, *tokens]) == decoded


def test_the_metadata_of_both_kinds_is_what_readers_expect() -> None:
    over_bytes, by_score = novella_metadata(), scored()
    assert over_bytes[GGML + "model"] == "gpt2"
    assert over_bytes[GGML + "pre"] == "gpt-2"
    assert over_bytes[GGML + "merges"][:2] == ["Ġ t", "Ġ Ġ"]
    assert [over_bytes[key] for key in map(TOKEN_KEYS.get, ("bos", "eos"))] == [0, 1]
    assert over_bytes[GGML + "add_bos_token"] is False
    assert GGML + "scores" not in over_bytes
    assert by_score[GGML + "model"] == "llama"
    assert by_score[GGML + "add_bos_token"] is True
    assert by_score[GGML + "add_space_prefix"] is True
    assert [by_score[key] for key in map(TOKEN_KEYS.get, ("unknown", "bos", "eos"))] == [0, 1, 2]
    types = by_score[GGML + "token_type"]
    assert types[:4].tolist() == [UNKNOWN, CONTROL, CONTROL, BYTE]
    assert (types == BYTE).sum() == 256
    assert (types.dtype, by_score[GGML + "scores"].dtype) == (np.int32, np.float32)


def test_the_metadata_survives_a_file(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    for metadata in (novella_metadata(), scored()):
        write_container(path, metadata, [])
        found = read_gguf(path).metadata.values
        assert found.keys() == metadata.keys()
        assert tokenizer_files(found, path) == tokenizer_files(metadata, path)


def test_scores_of_a_tokenizer_json_give_the_merges_of_the_model_file() -> None:
    content = convert_sentencepiece(SENTENCEPIECE).to_str().encode()
    files = MadeFiles(Path("made"), {"tokenizer.json": content})
    metadata = tokenizer_metadata(files, {"eos_token_id": 2})
    for key in set(metadata) - {GGML + "scores"}:
        assert np.array_equal(metadata[key], scored()[key]), key
    ours, theirs = (library(tokenizer_files(one, HERE)).to_str() for one in (metadata, scored()))
    assert ours == theirs


def test_rows_without_a_token_are_filled_and_left_out_again() -> None:
    metadata = novella_metadata(vocab_size=4100)
    assert metadata[GGML + "tokens"][4096:] == [f"[PAD{token}]" for token in range(4096, 4100)]
    assert metadata[GGML + "token_type"][4095:].tolist() == [NORMAL, *[UNUSED] * 4]
    assert tokenizer_files(metadata, HERE) == tokenizer_files(novella_metadata(), HERE)


def test_a_loaded_tokenizer_has_its_begin_and_end_tokens() -> None:
    metadata = novella_metadata() | {GGML + "eot_token_id": 5, GGML + "add_bos_token": True}
    loaded = load_tokenizer(MadeFiles(Path("made"), tokenizer_files(metadata, HERE)))
    assert (loaded.begin_token, loaded.end_tokens) == (0, {1, 5})
    assert loaded.encode("the")[0] == 0
    assert loaded.special_tokens == {0, 1}


def test_every_end_token_of_a_model_is_kept() -> None:
    metadata = novella_metadata(eos_token_id=[1, 7, 9])  # generation_config.json says 1 alone
    assert TOKEN_KEYS["eot"] not in metadata
    files = {"tokenizer.json": (NOVELLA / "tokenizer.json").read_bytes()}
    metadata = tokenizer_metadata(MadeFiles(Path("made"), files), {"eos_token_id": [1, 7, 9]})
    assert [metadata[TOKEN_KEYS[name]] for name in ("eos", "eot", "eom")] == [1, 7, 9]
    content = json.loads(tokenizer_files(metadata, HERE)["generation_config.json"])
    assert content["eos_token_id"] == [1, 7, 9]


def test_a_file_that_names_no_turn_end_has_it_by_its_text() -> None:
    metadata = bytes_over("a", "<|im_end|>", "<x>", types=[NORMAL, NORMAL, CONTROL])
    metadata[TOKEN_KEYS["eos"]] = 2
    files = tokenizer_files(metadata, HERE)
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [2, 1]
    assert library(files).encode("a<|im_end|>a").ids == [0, 1, 0]
    metadata[TOKEN_KEYS["eot"]] = 0
    ends = json.loads(tokenizer_files(metadata, HERE)["generation_config.json"])["eos_token_id"]
    assert ends == [2, 0]


def test_chat_templates_keep_their_names() -> None:
    for templates in ("{{ messages }}", [{"name": "tool_use", "template": "x"}], CHATS):
        files = made(tokenizer=SMALL, tokenizer_config={"chat_template": templates})
        metadata = tokenizer_metadata(files, {})
        back = json.loads(tokenizer_files(metadata, HERE)["tokenizer_config.json"])
        assert back["chat_template"] == templates
    assert metadata["tokenizer.chat_templates"] == ["tool_use"]
    assert metadata["tokenizer.chat_template.tool_use"] == "b"


CHATS = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]


def test_a_template_in_a_file_of_its_own_comes_first() -> None:
    files = made(tokenizer=SMALL, tokenizer_config={"chat_template": "old"})
    files = MadeFiles(files.path, {**files.contents, "chat_template.jinja": "neu ü".encode()})
    assert tokenizer_metadata(files, {})["tokenizer.chat_template"] == "neu ü"


def test_tokens_of_the_user_are_found_in_the_text_as_it_is() -> None:
    """So a scored piece has its space as a space; over bytes ▁ is a letter like others."""
    for base, text in ((SMALL, "▁x"), (SMALL_SCORED, " x")):
        metadata = tokenizer_metadata(small(base), {})
        assert metadata[GGML + "tokens"][3:5] == ["<s>", text]
        assert metadata[GGML + "token_type"][3:5].tolist() == [CONTROL, USER]
        back = library(tokenizer_files(metadata, HERE))
        assert back.encode(f"a{text}<s>ab").ids == [0, 4, 3, 2]
        assert [back.get_added_tokens_decoder()[token].special for token in (3, 4)] == [True, False]


def test_a_file_without_a_tokenizer_gives_no_files() -> None:
    for metadata in ({}, over_bytes(model="none"), over_bytes(model="no_vocab")):
        assert tokenizer_files(metadata, HERE) == {}


def test_what_a_file_may_leave_out_has_its_meaning() -> None:
    """The first three of scored pieces, types over bytes, the pre-tokenizer, an absent token."""
    absent = dict.fromkeys(("unknown_token_id", "bos_token_id", "eos_token_id", "add_bos_token"))
    files = tokenizer_files(scored(**absent, add_space_prefix=None), HERE)
    assert library(files).to_str() == scored_both()[1].to_str()
    metadata = over_bytes(token_type=None, pre=None, padding_token_id=0xFFFF_FFFF)
    files = tokenizer_files(metadata, HERE)
    content = json.loads(files["tokenizer.json"])
    assert content["pre_tokenizer"] == pre_tokenizer_json(ROWS["default"])
    assert json.loads(files["generation_config.json"]) == {}
    assert "pad_token" not in json.loads(files["tokenizer_config.json"])


def test_an_empty_token_and_a_merge_twice_are_what_readers_take_them_for() -> None:
    metadata = bytes_over(*("a", "b", "", "ab", "ba"), types=[1] * 5, merges=("a b", "b a", "a b"))
    files = tokenizer_files(metadata, HERE)
    assert library(files).id_to_token(2) == "[EMPTY_2]"
    assert library(files).encode("bab").ids == [1, 3]  # the first "a b" is the one that counts
