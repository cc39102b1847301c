"""Tokenizer metadata of GGUF files that lies: one error that names the file and the key.

In: metadata of a small vocabulary and of SentencePiece's own, changed on purpose and at random.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gguf_vocabularies import GGML, HERE, NORMAL, library, over_bytes, scored
from hypothesis import given
from hypothesis import strategies as st

from crumb.checkpoints.gguf.tokenizer import reader as tokenizer
from crumb.checkpoints.gguf.tokenizer.reader import MOST_TOKENS, tokenizer_files
from crumb.errors import CheckpointError, CrumbError


def scored_tokens(**changes: str) -> list[str]:
    """The tokens of tokenizer-400.model, some of them (t5="...") changed."""
    texts = list(scored()[GGML + "tokens"])
    for place, text in changes.items():
        texts[int(place[1:])] = text
    return texts


def scored_array(key: str, value: float) -> Any:
    array = scored()[GGML + key].copy()
    array[7] = value
    return array


REFUSED = {
    "another kind": (over_bytes(model="bert"), "model", "llama, t5, gpt2, rwkv, found 'bert'"),
    "a kind that is no text": (over_bytes(model=5), "model", "a string"),
    "an unknown pre-tokenizer": (over_bytes(pre="martian"), "pre", "llama-bpe.*found 'martian'"),
    "a pre-tokenizer that is no text": (over_bytes(pre=1), "pre", "a string"),
    "no tokens": (over_bytes(tokens=None), "tokens", "no such key"),
    "an empty list of tokens": (over_bytes(tokens=[]), "tokens", "1 to"),
    "tokens that are numbers": (over_bytes(tokens=np.arange(3)), "tokens", "an array of strings"),
    "a token that is no text": (over_bytes(tokens=["a", 5, "b"]), "tokens", "an array of"),
    "too many tokens": (over_bytes(tokens=["a"] * (MOST_TOKENS + 1)), "tokens", "at most"),
    "a token that is there twice": (
        over_bytes(tokens=["a", "b", "a"]),
        "tokens[2]",
        "another text than that of token 0, found 'a'",
    ),
    "a huge token": (
        over_bytes(tokens=["a", "b", "c" * 5000]),
        "tokens[2]",
        "at most 4096 characters, found 5000",
    ),
    "a huge piece": (
        scored(tokens=scored_tokens(t300="c" * 513)),
        "tokens[300]",
        "at most 512 characters, found 513",
    ),
    "huge tokens together": (
        over_bytes(tokens=[f"{i:04000}" for i in range(5000)]),
        "tokens",
        "characters in all",
    ),
    "types for fewer tokens": (
        over_bytes(token_type=np.ones(2, np.int32)),
        "token_type",
        "an array of 3 integers, found 2",
    ),
    "types for more tokens": (
        over_bytes(token_type=np.ones(4, np.int32)),
        "token_type",
        "an array of 3 integers, found 4",
    ),
    "types that are fractions": (
        over_bytes(token_type=np.ones(3, np.float32)),
        "token_type",
        "an array of 3 integers",
    ),
    "types that are one number": (over_bytes(token_type=1), "token_type", "an array"),
    "a type that is none": (
        scored(token_type=scored_array("token_type", 7)),
        "token_type",
        "1 to 6",
    ),
    "a negative type": (scored(token_type=scored_array("token_type", -1)), "token_type", "1 to 6"),
    "scored pieces without types": (scored(token_type=None), "token_type", "no such key"),
    "scored pieces without scores": (scored(scores=None), "scores", "no such key"),
    "scores for fewer tokens": (scored(scores=np.zeros(5, np.float32)), "scores", "found 5"),
    "scores that are texts": (scored(scores=["1"] * 400), "scores", "numbers"),
    "a score that is no number": (
        scored(scores=scored_array("scores", np.nan)),
        "scores",
        "not finite .found nan for token 7",
    ),
    "an infinite score": (scored(scores=scored_array("scores", np.inf)), "scores", "not finite"),
    "a byte token below zero": (scored(tokens=scored_tokens(t3="<0x-1>")), "tokens", "'<0x-1>'"),
    "a byte token that is short": (scored(tokens=scored_tokens(t3="<0")), "tokens", "'<0'"),
    "a byte that is missing": (
        scored(token_type=scored_array("token_type", NORMAL)),
        "tokens",
        "<0x00> to <0xFF>.*found 255",
    ),
    "a merge of nothing": (over_bytes(merges=["ab"]), "merges[0]", "two tokens"),
    "an empty merge": (over_bytes(merges=["a b", ""]), "merges[1]", "two tokens"),
    "a merge of no token": (over_bytes(merges=["a b", "a c"]), "merges[1]", "found 'a c'"),
    "a merge into no token": (over_bytes(merges=["b a"]), "merges[0]", "found 'b a'"),
    "a huge merge": (over_bytes(merges=["a " + "b" * 10**6]), "merges[0]", "two tokens"),
    "no merges": (over_bytes(merges=None), "merges", "no such key"),
    "merges that are numbers": (over_bytes(merges=np.zeros(3)), "merges", "an array of strings"),
    "a begin token beyond the tokens": (
        over_bytes(bos_token_id=3),
        "bos_token_id",
        "from 0 to 2, found 3",
    ),
    "an end token of 2^31": (over_bytes(eos_token_id=2**31), "eos_token_id", "from 0 to 2"),
    "a negative end token": (over_bytes(eos_token_id=-1), "eos_token_id", "from 0 to 2"),
    "an end token that is a text": (over_bytes(eos_token_id="b"), "eos_token_id", "from 0 to 2"),
    "a turn end beyond the tokens": (over_bytes(eot_token_id=9), "eot_token_id", "from 0 to 2"),
    "no begin token to be added": (over_bytes(add_bos_token=True), "add_bos_token", "false, as"),
    "a flag that is a number": (over_bytes(add_eos_token=1), "add_eos_token", "true or false"),
    "a template that is a number": (
        over_bytes() | {"tokenizer.chat_template": 5},
        "tokenizer.chat_template",
        "a string",
    ),
    "a template that is missing": (
        over_bytes() | {"tokenizer.chat_templates": ["rag"]},
        "tokenizer.chat_template.rag",
        "no such key",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_metadata_that_is_not_what_it_claims_is_refused(case: str) -> None:
    metadata, key, words = REFUSED[case]
    with pytest.raises(CheckpointError, match=words) as caught:
        tokenizer_files(metadata, HERE)
    name = key if key.startswith("tokenizer.") else GGML + key
    assert str(caught.value.where) == f"{HERE}: {name}"
    assert len(str(caught.value)) < 2000


def test_pieces_that_merge_in_too_many_ways_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(tokenizer, "MOST_MERGES", 3)
    with pytest.raises(CheckpointError, match="more than 3 merges"):
        tokenizer_files(scored(), HERE)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.text(max_size=3), max_size=5),
    st.lists(st.integers(-9, 9), max_size=5).map(np.array),
)


@given(st.dictionaries(st.sampled_from(sorted(scored() | over_bytes())), VALUES, max_size=3))
def test_no_value_gets_past_the_checks_as_another_error(changes: dict[str, Any]) -> None:
    for metadata in (scored(), over_bytes()):
        changed = {key: v for key, v in (metadata | changes).items() if v is not None}
        try:
            files = tokenizer_files(changed, HERE)
        except CrumbError:
            continue
        if files:
            library(files).encode("a b\n🙂 ▁▁")
