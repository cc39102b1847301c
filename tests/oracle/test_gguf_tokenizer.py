"""Tokenizers that went through GGUF metadata, against transformers and SentencePiece.

Files made of metadata load in transformers and give the tokens of the tokenizer they came from;
models that SentencePiece trains here give SentencePiece's tokens.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from gguf_vocabularies import GGML, NOVELLA, novella_metadata
from published_pre_tokenizers import PUBLISHED
from trained_tokenizers import CORPUS, MARKS, texts, trained

from crumb.checkpoints.gguf.tokenizer.pre_tokenizers import ROWS, pre_tokenizer_json
from crumb.checkpoints.gguf.tokenizer.reader import tokenizer_files
from crumb.checkpoints.gguf.tokenizer.writer import tokenizer_metadata
from crumb.files.model_files import DirectoryFiles, MadeFiles
from crumb.tokenizer.tokenizer import load_tokenizer

pytestmark = pytest.mark.oracle
sentencepiece = pytest.importorskip("sentencepiece")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")


def written(directory: Path, metadata: dict[str, Any]) -> Path:
    """The files of metadata in a directory, as transformers reads one."""
    for name, content in tokenizer_files(metadata, directory).items():
        (directory / name).write_bytes(content)
    return directory


@pytest.mark.parametrize("row", ["tekken", "deepseek-llm", "deepseek-v3", "seed-coder"])
def test_transformers_reads_the_tokenizer_of_a_row(tmp_path: Path, row: str) -> None:
    whole_words, normal_form = ROWS[row].whole_words, ROWS[row].normal_form
    pre = pre_tokenizer_json(ROWS[row])
    check_both(tmp_path, trained(pre, whole_words=whole_words, normal_form=normal_form), row)


@pytest.mark.parametrize("model", PUBLISHED)
def test_transformers_reads_the_tokenizer_of_a_published_kind(tmp_path: Path, model: str) -> None:
    steps, whole_words, normal_form, name = PUBLISHED[model]
    pre = {"type": "Sequence", "pretokenizers": steps}
    check_both(tmp_path, trained(pre, whole_words=whole_words, normal_form=normal_form), name)


def check_both(tmp_path: Path, theirs: Any, name: str) -> None:
    """A tokenizer, and what transformers makes of our files of its metadata."""
    files = MadeFiles(tmp_path, {"tokenizer.json": theirs.to_str().encode()})
    metadata = tokenizer_metadata(files, {"eos_token_id": 1})
    assert metadata[GGML + "pre"] == name
    loaded = transformers.AutoTokenizer.from_pretrained(written(tmp_path, metadata))
    assert (loaded.bos_token, loaded.eos_token) == ("<s>", "</s>")
    for text in texts(*MARKS):
        tokens = theirs.encode(text).ids
        assert loaded(text)["input_ids"] == tokens, repr(text)
        assert loaded.decode(tokens[1:]) == theirs.decode(tokens[1:], skip_special_tokens=False)


def test_transformers_reads_the_embedded_tokenizer_both_ways_alike(tmp_path: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(NOVELLA)
    ours = transformers.AutoTokenizer.from_pretrained(written(tmp_path, novella_metadata()))
    for text in texts("<s>", "</s>"):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"], repr(text)


@pytest.mark.parametrize(
    "settings",
    [{}, {"add_dummy_prefix": False}, {"remove_extra_whitespaces": True}, {"vocab_size": 400}],
)
def test_sentencepiece_gives_the_same_tokens(tmp_path: Path, settings: dict[str, Any]) -> None:
    out = io.BytesIO()
    llama = {"add_dummy_prefix": True, "remove_extra_whitespaces": False, "vocab_size": 1200}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()),
        model_writer=out,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
        **(llama | settings),
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    (tmp_path / "tokenizer.model").write_bytes(out.getvalue())
    metadata = tokenizer_metadata(DirectoryFiles(tmp_path), {"vocab_size": 1280})
    loaded = transformers.AutoTokenizer.from_pretrained(written(tmp_path, metadata))
    ours = load_tokenizer(DirectoryFiles(tmp_path))
    for text in texts():
        tokens = theirs.encode(text)
        assert ours.encode(text) == [1, *tokens], repr(text)
        assert ours.decode(tokens) == theirs.decode(tokens), repr(text)
        assert loaded(text)["input_ids"] == [1, *tokens], repr(text)
