"""Our reading of tokenizer.model against SentencePiece itself, on models trained here.

LLaMA's settings, and the variants of them that are read: the same tokens for every text and the
same text back. Also: the record that tests/unit/run uses is what SentencePiece says.
"""

from __future__ import annotations

import io
import json
import random
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from crumb.errors import CheckpointError
from crumb.tokenizer.sentencepiece_model import convert_sentencepiece

pytestmark = pytest.mark.oracle
sentencepiece = pytest.importorskip("sentencepiece")

CORPUS = (
    resources.files("crumb")
    .joinpath("embedded", "texts", "excerpt-calibration.txt")
    .read_text(encoding="utf-8")
    .replace("<unk>", "unk")  # written out it is a special token to us and text to SentencePiece
)
LLAMA: dict[str, Any] = {
    "vocab_size": 2000,
    "model_type": "bpe",
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": True,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "character_coverage": 0.9995,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "spaces collapsed": {"remove_extra_whitespaces": True},
    "no dummy prefix": {"add_dummy_prefix": False},
    "pieces across words": {"split_by_whitespace": False, "split_by_unicode_script": False},
    "no begin token": {"bos_id": -1},
}
CHARACTERS = " \n\t▁a=-_0éß語🙂نЖ𝔘\x00\x07\u200b\ufeff\u00a0\u3000\ufffd\U0010ffff"
WORDS = (
    "aa",
    "17",
    "3.14",
    "e\u0301",
    "日本",
    "한국어",
    "नि",
    "👩‍👩‍👧",
    "🇫🇷",
    "the",
    "The",
    " the",
    "@-@",
)
PIECES = ("  ", "   ", "\n\n", "\r\n", "<0x41>", "[INST]", "def f(x):", ".", ",")
SCRAPS = (*CHARACTERS, *WORDS, *PIECES)


def train(**settings: Any) -> bytes:
    """A model trained on the embedded excerpt, as the bytes of its file."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()),
        model_writer=out,
        num_threads=1,
        minloglevel=2,
        **(LLAMA | settings),
    )
    return out.getvalue()


def varied_texts() -> list[str]:
    """240 texts: passages, scraps thrown together, long runs of one scrap, random characters."""
    draw = random.Random(0)
    texts = ["", *SCRAPS]
    while len(texts) < 240:
        start = draw.randrange(len(CORPUS))
        ranges = ((0x20, 0x7F), (0xA0, 0x3000), (0x10000, 0x1FFFF))
        texts += [
            CORPUS[start : start + draw.randrange(300)],
            "".join(draw.choice(SCRAPS) for _ in range(draw.randrange(30))),
            draw.choice(SCRAPS) * draw.randrange(70) + draw.choice(SCRAPS) * draw.randrange(40),
            "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randrange(25))),
        ]
    return texts


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_text_gets_the_tokens_of_sentencepiece_and_comes_back(
    tmp_path: Path, variant: str
) -> None:
    content = train(**VARIANTS[variant])
    (tmp_path / "tokenizer.model").write_bytes(content)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=content)
    ours = convert_sentencepiece(tmp_path / "tokenizer.model")
    begin = [1] if theirs.bos_id() == 1 else []
    for text in varied_texts():
        tokens = theirs.encode(text)
        assert ours.encode(text).ids == begin + tokens, repr(text)
        assert ours.decode(begin + tokens) == theirs.decode(tokens), repr(text)


def test_without_byte_fallback_the_unknown_tokens_are_the_same(tmp_path: Path) -> None:
    """Decoded they differ: to us the unknown token is special and vanishes from the text."""
    content = train(byte_fallback=False, character_coverage=0.98)
    (tmp_path / "tokenizer.model").write_bytes(content)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=content)
    ours = convert_sentencepiece(tmp_path / "tokenizer.model", add_begin=False)
    for text in varied_texts():
        assert ours.encode(text).ids == theirs.encode(text), repr(text)


def test_a_text_of_100_kilobytes_gets_the_same_tokens(tmp_path: Path) -> None:
    """Perplexity tokenizes a whole text at once, without a break."""
    content = train()
    (tmp_path / "tokenizer.model").write_bytes(content)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=content)
    ours = convert_sentencepiece(tmp_path / "tokenizer.model", add_begin=False)
    assert ours.encode(CORPUS).ids == theirs.encode(CORPUS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "unigram", "vocab_size": 800}, "byte-pair encoding"),
        ({"normalization_rule_name": "nmt_nfkc"}, "identity normalization"),
        ({"user_defined_symbols": ["<call>"]}, "pieces of this type"),
        ({"treat_whitespace_as_suffix": True}, "spaces in front of words"),
    ],
)
def test_models_of_other_kinds_are_refused(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train(**settings))
    with pytest.raises(CheckpointError, match=words):
        convert_sentencepiece(tmp_path / "tokenizer.model")


def test_the_record_of_the_unit_tests_is_what_sentencepiece_says() -> None:
    path = Path(__file__).parents[1] / "unit" / "tokenizer" / "tokenizer-400.model"
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    record = json.loads(path.with_suffix(".json").read_text())
    assert len(record) > 50
    for text, tokens, decoded in record:
        assert theirs.encode(text) == tokens, repr(text)
        assert theirs.decode(tokens) == decoded, repr(text)
