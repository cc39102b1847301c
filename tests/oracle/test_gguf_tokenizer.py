"""Tokenizers that went through GGUF metadata, against transformers and SentencePiece.

Files made of metadata load in transformers and give the tokens of the tokenizer they came from;
models that SentencePiece trains here give SentencePiece's tokens.
"""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from gguf_vocabularies import EMBEDDED, GGML, NOVELLA, novella_metadata

from crumb.checkpoints.gguf.tokenizer.pre_tokenizers import ROWS, pre_tokenizer_json
from crumb.checkpoints.gguf.tokenizer.reader import tokenizer_files
from crumb.checkpoints.gguf.tokenizer.writer import tokenizer_metadata
from crumb.files.model_files import DirectoryFiles, MadeFiles
from crumb.tokenizer.tokenizer import load_tokenizer

pytestmark = pytest.mark.oracle
sentencepiece = pytest.importorskip("sentencepiece")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

TEXT = (EMBEDDED / "texts" / "excerpt-calibration.txt").read_text(encoding="utf-8")
CORPUS = TEXT.replace("<unk>", "unk")  # a special token to us, text to SentencePiece
SCRAPS = (
    *" \n\t_0éß語🙂नЖ▁",
    "\r\n",
    "  ",
    "I'll",
    "17",
    "日本",
    "e\u0301",
    "the",
    " The",
    "f(x):",
)
MARKS = ("<s>", "</s>", "<|turn|>")


def texts(*marks: str) -> list[str]:
    """160 texts: passages, and scraps with special tokens thrown together."""
    draw = random.Random(0)
    found = [""]
    while len(found) < 160:
        start = draw.randrange(len(CORPUS))
        found += [
            CORPUS[start : start + draw.randrange(300)],
            "".join(draw.choice((*SCRAPS, *marks)) for _ in range(draw.randrange(30))),
        ]
    return found


def written(directory: Path, metadata: dict[str, Any]) -> Path:
    """The files of metadata in a directory, as transformers reads one."""
    for name, content in tokenizer_files(metadata, directory).items():
        (directory / name).write_bytes(content)
    return directory


def trained(row: str) -> Any:
    """A byte-level tokenizer of 900 tokens with a begin token and a pre-tokenizer of that row."""
    model = {"type": "BPE", "vocab": {}, "merges": [], "ignore_merges": ROWS[row].whole_words}
    content = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": pre_tokenizer_json(ROWS[row]),
        "normalizer": {"type": "NFC"} if ROWS[row].normal_form else None,
        "model": model,
    }
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=list(MARKS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    return tokenizer


@pytest.mark.parametrize("row", ["gpt-2", "llama-bpe", "qwen2", "smollm", "tekken", "deepseek-v3"])
def test_transformers_reads_the_tokenizer_that_was_trained(tmp_path: Path, row: str) -> None:
    theirs = trained(row)
    files = MadeFiles(tmp_path, {"tokenizer.json": theirs.to_str().encode()})
    metadata = tokenizer_metadata(files, {"eos_token_id": 1})
    assert metadata[GGML + "pre"] == row
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
