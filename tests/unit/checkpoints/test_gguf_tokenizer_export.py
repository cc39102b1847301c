"""Which tokenizers GGUF metadata can hold: pre-tokenizers by name, spaces, merges, added tokens.

In: small tokenizer.json files. Out: metadata, or a refusal that names the file and what to do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from gguf_vocabularies import (
    BYTES,
    CONTROL,
    GGML,
    HERE,
    SCORED_TEXTS,
    SENTENCEPIECE,
    SMALL,
    SMALL_SCORED,
    UNUSED,
    USER,
    WORDS,
    made,
    scored,
    small,
)

from crumb.checkpoints.gguf.tokenizer.pre_tokenizers import (
    GPT2,
    LLAMA3,
    NAMED,
    QWEN2,
    ROWS,
    name_of_pre_tokenizer,
    pre_tokenizer_json,
)
from crumb.checkpoints.gguf.tokenizer.reader import tokenizer_files
from crumb.checkpoints.gguf.tokenizer.writer import tokenizer_metadata
from crumb.errors import CheckpointError, ModelNotFound, UsageError
from crumb.files.model_files import MadeFiles


@pytest.mark.parametrize("name", ROWS)
def test_a_pre_tokenizer_is_recognized_as_it_was_written(name: str) -> None:
    """Under its name, or that of the first with the same expressions and manners."""
    row = ROWS[name]
    content = pre_tokenizer_json(row)
    found = name_of_pre_tokenizer(
        content, whole_words=row.whole_words, normal_form=row.normal_form, where=HERE
    )
    same = [other for other in ROWS if ROWS[other].splits == row.splits]
    manners = (row.whole_words, row.normal_form)
    assert found == next(n for n in same if (ROWS[n].whole_words, ROWS[n].normal_form) == manners)


@pytest.mark.parametrize("name", NAMED)
def test_every_named_pre_tokenizer_leaves_a_text_whole(name: str) -> None:
    """The library takes its expressions; what is cut is neither lost nor doubled."""
    content = {**SMALL, "pre_tokenizer": pre_tokenizer_json(NAMED[name])}
    text = "I'LL pay $1234567.50 for\n\n  Ünï  é 日本語 ²½ (a_b) it's\t\r\nend  "
    parts = tokenizers.Tokenizer.from_str(json.dumps(content)).pre_tokenizer.pre_tokenize_str(text)
    assert len(parts) > 5
    decoder = tokenizers.decoders.ByteLevel()
    assert decoder.decode([part for part, _ in parts]) == text


def split(expression: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": behavior,
        "invert": invert,
    }


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


BOTH_CASES = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"


SPELLED = {
    "digits one by one": (
        sequence({"type": "Digits", "individual_digits": True}, WORDS),
        "smollm",
    ),
    "what matches is kept": (sequence(split(QWEN2, "Removed", True), BYTES), "deepseek-r1-qwen"),
    "both cases of each letter": (
        sequence(split(LLAMA3.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", BOTH_CASES)), BYTES),
        "dbrx",
    ),
    "line ends as they are": (
        sequence(split(LLAMA3.replace(r"\r", "\r").replace(r"\n", "\n")), BYTES),
        "dbrx",
    ),
    "Falcon's": (
        sequence(
            {"type": "Punctuation", "behavior": "Contiguous"},
            WORDS,
            {"type": "Digits", "individual_digits": False},
            split("[0-9][0-9][0-9]"),
        ),
        "falcon",
    ),
    "one expression": (sequence(split(GPT2), BYTES), "gpt-2"),
}


@pytest.mark.parametrize("case", SPELLED)
def test_another_spelling_of_a_pre_tokenizer_is_recognized(case: str) -> None:
    content, name = SPELLED[case]
    assert tokenizer_metadata(small(pre_tokenizer=content), {})[GGML + "pre"] == name


def test_manners_choose_among_names_of_the_same_expressions() -> None:
    for content, model, form, name in (
        (sequence(split(LLAMA3), BYTES), {"ignore_merges": True}, None, "llama-bpe"),
        (sequence(split(LLAMA3), BYTES), {"ignore_merges": False}, None, "dbrx"),
        (sequence(split(QWEN2), BYTES), None, {"type": "NFC"}, "qwen2"),
        (sequence(split(QWEN2), BYTES), None, None, "deepseek-r1-qwen"),
    ):
        files = small(pre_tokenizer=content, normalizer=form, model=model)
        metadata = tokenizer_metadata(files, {})
        assert metadata[GGML + "pre"] == name
        back = json.loads(tokenizer_files(metadata, HERE)["tokenizer.json"])
        assert back["normalizer"] == form
        assert back["model"]["ignore_merges"] == bool(model and model["ignore_merges"])


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}


def test_spaces_may_be_written_by_the_pre_tokenizer() -> None:
    for scheme, prefix in (("always", True), ("first", True), ("never", False)):
        pre = METASPACE | {"prepend_scheme": scheme}
        files = small(SMALL_SCORED, normalizer=None, pre_tokenizer=pre)
        assert tokenizer_metadata(files, {})[GGML + "add_space_prefix"] is prefix


INEXPRESSIBLE = {
    "an expression without a row": (
        SMALL,
        {"pre_tokenizer": sequence(split("x+"), BYTES)},
        "no name",
    ),
    "only matches that leave gaps": (
        SMALL,
        {"pre_tokenizer": sequence(split(r"\p{N}", "Removed", True), WORDS)},
        "no name",
    ),
    "a space in front, over bytes": (
        SMALL,
        {"pre_tokenizer": WORDS | {"add_prefix_space": True}},
        "no name",
    ),
    "small letters": (SMALL, {"normalizer": {"type": "Lowercase"}}, "NFC"),
    "suffixes": (SMALL, {"model": {"end_of_word_suffix": "</w>"}}, "byte-pair encoding"),
    "a model of words": (
        SMALL,
        {"model": {"type": "WordLevel", "unk_token": "a"}},
        "byte-pair encoding or Unigram, found 'WordLevel'",
    ),
    "two tokens in front": (
        SMALL,
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 2
                + [{"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}},
            }
        },
        "at most one token in front",
    ),
    "spaces as they are, by score": (SMALL_SCORED, {"normalizer": None}, "does to spaces"),
    "words cut apart whose pieces go on": (
        SMALL_SCORED,
        {
            "normalizer": None,
            "pre_tokenizer": METASPACE,
            "model": {"vocab": SCORED_TEXTS | {"a▁b": 261}},
        },
        "does to spaces",
    ),
    "a merge left out": (SMALL_SCORED, {"model": {"merges": []}}, "merges left out"),
    "merges of two tokens by turns": (
        SMALL_SCORED,
        {
            "model": {
                "vocab": SCORED_TEXTS | {"aab": 261, "aa": 262},
                "merges": [["a", "b"], ["a", "ab"], ["a", "a"], ["aa", "b"]],
            }
        },
        "merges in another order",
    ),
}


@pytest.mark.parametrize("case", INEXPRESSIBLE)
def test_a_tokenizer_that_gguf_cannot_express_is_refused(case: str) -> None:
    base, changes, words = INEXPRESSIBLE[case]
    with pytest.raises(UsageError, match=words) as caught:
        tokenizer_metadata(small(base, **changes), {})
    assert "tokenizer.json" in str(caught.value)
    assert "Export to another container" in str(caught.value)


def test_a_tokenizer_json_that_gguf_cannot_express_gives_way_to_the_model_file() -> None:
    contents = {**small(normalizer={"type": "Lowercase"}).contents}
    contents["tokenizer.model"] = SENTENCEPIECE.read_bytes()
    metadata = tokenizer_metadata(MadeFiles(Path("made"), contents), {})
    assert metadata[GGML + "tokens"] == scored()[GGML + "tokens"]


def test_tokens_added_to_a_model_file_are_there() -> None:
    size = len(scored()[GGML + "tokens"])
    decoder = {str(size + 2): {"content": "<call>", "special": False}, "0": {"content": "<unk>"}}
    files = made(added_tokens={"<end>": size}, tokenizer_config={"added_tokens_decoder": decoder})
    contents = {**files.contents, "tokenizer.model": SENTENCEPIECE.read_bytes()}
    metadata = tokenizer_metadata(MadeFiles(Path("made"), contents), {"vocab_size": size + 4})
    assert metadata[GGML + "tokens"][size:] == [
        "<end>",
        f"[PAD{size + 1}]",
        "<call>",
        f"[PAD{size + 3}]",
    ]
    assert metadata[GGML + "token_type"][size:].tolist() == [CONTROL, UNUSED, USER, UNUSED]


BROKEN = {
    "no JSON": ({"tokenizer.json": b"{"}, {}, CheckpointError, "cannot be read"),
    "no tokenizer": ({"tokenizer.json": b"{}"}, {}, CheckpointError, "cannot be read"),
    "no file": ({}, {}, ModelNotFound, "no tokenizer"),
    "more tokens than the model": (
        small().contents,
        {"vocab_size": 4},
        CheckpointError,
        "at most 4",
    ),
    "an end beyond the vocabulary": (
        small().contents,
        {"eos_token_id": 5},
        CheckpointError,
        "eos_token_id: .*below 5, found 5",
    ),
    "a number far from the others": (
        small(model={"vocab": SMALL["model"]["vocab"] | {"c": 4_000_000_000}}).contents,
        {},
        CheckpointError,
        "far from the others",
    ),
    "two texts of one number": (
        small(model={"vocab": SMALL["model"]["vocab"] | {"c": 2}}).contents,
        {},
        CheckpointError,
        "two texts",
    ),
    "a text that fills a hole": (
        small(model={"vocab": SMALL["model"]["vocab"] | {"[PAD3]": 7}}).contents,
        {},
        CheckpointError,
        "the same text",
    ),
    "a template that is none": (
        {**small().contents, "tokenizer_config.json": b'{"chat_template": [{"name": 1}]}'},
        {},
        CheckpointError,
        "a list of objects with a name and a template",
    ),
    "a template that is not UTF-8": (
        {**small().contents, "chat_template.jinja": b"\xff"},
        {},
        CheckpointError,
        "chat_template.jinja: cannot be read",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_are_not_what_they_claim_are_refused(case: str) -> None:
    contents, configuration, error, words = BROKEN[case]
    with pytest.raises(error, match=words):
        tokenizer_metadata(MadeFiles(Path("made"), contents), configuration)
