"""A model directory becomes a Tokenizer: which file is read, what is special, what fails."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumb.errors import CheckpointError, CrumbWarning, ModelNotFound, UsageError
from crumb.files.model_files import TOKENIZER_FILES, DirectoryFiles
from crumb.tokenizer.tokenizer import Tokenizer, load_tokenizer

SENTENCEPIECE = Path(__file__).parent / "tokenizer-400.model"

SMALL_JSON: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [
        {
            "id": token,
            "content": content,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for token, content in enumerate(["<s>", "</s>", "<end>"])
    ],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {
        "type": "BPE",
        "vocab": {"<s>": 0, "</s>": 1, "<end>": 2, "a": 3, "b": 4, "ab": 5},
        "merges": [["a", "b"]],
    },
}
"""A tokenizer.json of six tokens."""

MakeModel = Callable[..., Path]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """make_model(file_name=object, ...) -> a directory with these JSON files."""

    def make(**files: Any) -> Path:
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / f"{name}.json").write_text(text)
        return tmp_path

    return make


def test_the_embedded_model_reads_back_what_it_wrote() -> None:
    tokenizer = novella()
    assert tokenizer.begin_token == 0
    assert tokenizer.end_tokens == {1}
    assert tokenizer.vocabulary == 4096
    for text in ("Once upon a time", " two  spaces\n\n", "naïve 🙂 日本\x00", ""):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        assert all(0 <= token < 4096 for token in tokens)


@given(st.text())
def test_any_text_survives_the_embedded_tokenizer(text: str) -> None:
    tokenizer = novella()
    assert tokenizer.decode(tokenizer.encode(text)) == text or "<s>" in text or "</s>" in text


@cache
def novella() -> Tokenizer:
    with resources.as_file(resources.files("crumb") / "embedded" / "novella-7m") as path:
        return load_tokenizer(DirectoryFiles(path))


def test_tokenizer_json_is_preferred_to_tokenizer_model(make_model: MakeModel) -> None:
    path = make_model(tokenizer=SMALL_JSON)
    shutil.copy(SENTENCEPIECE, path / "tokenizer.model")
    assert load_tokenizer(DirectoryFiles(path)).encode("ab") == [5]


def test_llamas_tokenizer_begins_texts_unless_its_settings_say_no(make_model: MakeModel) -> None:
    path = make_model()
    shutil.copy(SENTENCEPIECE, path / "tokenizer.model")
    begun = load_tokenizer(DirectoryFiles(path)).encode("hello")
    assert begun[0] == 1
    make_model(tokenizer_config={"add_bos_token": False, "add_eos_token": True})
    assert load_tokenizer(DirectoryFiles(path)).encode("hello") == [*begun[1:], 2]


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no tokenizer .*tokenizer\.json"):
        load_tokenizer(DirectoryFiles(tmp_path))


SPECIAL_TOKENS: list[tuple[dict[str, Any], int | None, set[int]]] = [
    ({}, None, set()),
    ({"config": {"bos_token_id": 0, "eos_token_id": 1}}, 0, {1}),
    ({"config": {"eos_token_id": [1, 2]}}, None, {1, 2}),
    ({"config": {"eos_token_id": 1}, "generation_config": {"eos_token_id": [1, 2]}}, None, {1, 2}),
    ({"config": {"bos_token_id": 0}, "generation_config": {"bos_token_id": None}}, 0, set()),
    ({"config": {"bos_token_id": -1, "eos_token_id": True}}, None, set()),
    ({"config": {"bos_token_id": "0", "eos_token_id": [None, 1.0, 1]}}, None, {1}),
    ({"tokenizer_config": {"bos_token": "<s>", "eos_token": {"content": "<end>"}}}, 0, {2}),
    ({"tokenizer_config": {"bos_token": "<none>", "eos_token": 7}}, None, set()),
    ({"config": {"bos_token_id": 1}, "tokenizer_config": {"bos_token": "<s>"}}, 1, set()),
    (
        {
            "config": {"eos_token_id": 0},
            "generation_config": {"eos_token_id": [1]},
            "tokenizer_config": {"eos_token": "<end>"},
        },
        None,
        {0, 1, 2},
    ),
    ({"config": {"eos_token_id": 1}, "tokenizer_config": {"eos_token": "<end>"}}, None, {1, 2}),
    (
        {
            "config": {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 2},
            "generation_config": {"bos_token_id": 1},
            "tokenizer_config": {"eos_token": "<end>"},  # a token that the model does not have
        },
        1,
        {0},
    ),
]


@pytest.mark.parametrize(("files", "begin", "ends"), SPECIAL_TOKENS)
def test_special_tokens_come_from_the_configurations(
    make_model: MakeModel, files: dict[str, Any], begin: int | None, ends: set[int]
) -> None:
    tokenizer = load_tokenizer(DirectoryFiles(make_model(tokenizer=SMALL_JSON, **files)))
    assert tokenizer.begin_token == begin
    assert tokenizer.end_tokens == ends


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id"])
def test_a_special_token_outside_the_vocabulary_is_refused(
    make_model: MakeModel, name: str
) -> None:
    path = make_model(tokenizer=SMALL_JSON, config={"vocab_size": 6, name: 6})
    with pytest.raises(CheckpointError, match="below 6, found 6"):
        load_tokenizer(DirectoryFiles(path))


def test_a_token_that_the_model_does_not_have_is_refused(make_model: MakeModel) -> None:
    tokenizer = load_tokenizer(
        DirectoryFiles(make_model(tokenizer=SMALL_JSON, config={"vocab_size": 5}))
    )
    assert tokenizer.encode("a") == [3]
    with pytest.raises(CheckpointError, match="tokens below 5, found 5"):
        tokenizer.encode("ab")


BEGINS: dict[str, Any] = SMALL_JSON | {
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
}


@pytest.mark.parametrize("asked", [True, False, None])
@pytest.mark.parametrize(("content", "adds"), [(SMALL_JSON, False), (BEGINS, True)])
def test_it_is_told_when_add_bos_token_is_not_followed(
    make_model: MakeModel, content: dict[str, Any], adds: bool, asked: bool | None
) -> None:
    settings = {"bos_token": "<s>"} | ({} if asked is None else {"add_bos_token": asked})
    path = make_model(tokenizer=content, tokenizer_config=settings)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tokenizer = load_tokenizer(DirectoryFiles(path))
    assert tokenizer.encode("a") == ([0, 3] if adds else [3])
    assert len(told) == (asked is not None and asked is not adds)
    assert all("add_bos_token" in str(each.message) for each in told)


def test_a_text_that_begins_twice_is_told_of_once_it_is_read(make_model: MakeModel) -> None:
    tokenizer = load_tokenizer(
        DirectoryFiles(make_model(tokenizer=BEGINS, tokenizer_config={"bos_token": "<s>"}))
    )
    assert tokenizer.encode("<s>a", special=False) == [0, 3]
    with pytest.warns(CrumbWarning, match="begins with <s>"):
        assert tokenizer.encode("<s>a") == [0, 0, 3]


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(UsageError, match="lone surrogate at character 2"):
        novella().encode("ab\ud800")


def test_truncation_and_padding_of_the_file_are_switched_off(make_model: MakeModel) -> None:
    settings = {
        "truncation": {
            "direction": "Right",
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": {
            "strategy": {"Fixed": 9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<s>",
        },
    }
    tokenizer = load_tokenizer(DirectoryFiles(make_model(tokenizer=SMALL_JSON | settings)))
    assert tokenizer.encode("aaa") == [3, 3, 3]


PANIC = SMALL_JSON | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
BROKEN: dict[str, Any] = {
    "empty": "",
    "cut": json.dumps(SMALL_JSON)[:-9],
    "a list": [],
    "no model": {"version": "1.0"},
    "a merge of strangers": SMALL_JSON | {"model": SMALL_JSON["model"] | {"merges": [["x", "y"]]}},
    "what makes the library panic": PANIC,
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_tokenizer_json_is_a_checkpoint_error(make_model: MakeModel, case: str) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: the tokenizer cannot be read"):
        load_tokenizer(DirectoryFiles(make_model(tokenizer=BROKEN[case])))


@pytest.mark.parametrize("name", ["config", "generation_config", "tokenizer_config"])
def test_a_configuration_that_is_no_json_object_is_refused(
    make_model: MakeModel, name: str
) -> None:
    for content in ("[1]", "{", "5"):
        with pytest.raises(CheckpointError, match=rf"{name}\.json"):
            load_tokenizer(DirectoryFiles(make_model(tokenizer=SMALL_JSON, **{name: content})))


ADDED: dict[str, dict[str, Any]] = {
    "added_tokens": {"added_tokens": {"<pad>": 401, "<call>": 400, "<s>": 1}},
    "added_tokens_decoder": {
        "tokenizer_config": {
            "added_tokens_decoder": {
                "1": {"content": "<s>", "special": True},
                "401": {"content": "<pad>"},
                "400": {"content": "<call>", "special": False},
            }
        }
    },
}


@pytest.mark.parametrize("case", ADDED)
def test_tokens_added_to_a_sentencepiece_model_are_whole(make_model: MakeModel, case: str) -> None:
    path = make_model(**ADDED[case])
    shutil.copy(SENTENCEPIECE, path / "tokenizer.model")
    tokenizer = load_tokenizer(DirectoryFiles(path))
    tokens = tokenizer.encode("<call><pad>")
    assert tokens == [1, 400, 401]
    shown = "" if case == "added_tokens" else "<call>"  # only what is not special is text
    assert tokenizer.decode(tokens) == shown


@pytest.mark.parametrize("token", [402, 3, -1, "400", None, [400], 2**70])
def test_an_added_token_with_another_number_is_refused(make_model: MakeModel, token: Any) -> None:
    path = make_model(added_tokens={"<pad>": token, "<call>": 400})
    shutil.copy(SENTENCEPIECE, path / "tokenizer.model")
    if token is None:  # a null entry says nothing
        assert load_tokenizer(DirectoryFiles(path)).encode("<call>") == [1, 400]
        return
    with pytest.raises(CheckpointError, match="does not continue the vocabulary"):
        load_tokenizer(DirectoryFiles(path))


def test_every_file_that_is_read_travels_with_a_quantized_model() -> None:
    read = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json"}
    assert read | {"generation_config.json"} <= set(TOKENIZER_FILES)
