"""T5's kind of tokenizer against SentencePiece itself: a Unigram model that is trained here.

In: settings as T5's, a normal form compiled by SentencePiece. Out: the same tokens for every text
and the same text back, from tokenizer.json and from a GGUF file that it was written to.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_models import write_source_model
from trained_tokenizers import CORPUS, texts

from crumb.checkpoints.gguf.tokenizer.unigram import unigram_tokenizer
from crumb.checkpoints.gguf.writer import encode_plain, write_gguf
from crumb.checkpoints.opening import open_checkpoint
from crumb.tokenizer.scored_pieces import Piece, PieceSettings, PieceType
from crumb.tokenizer.tokenizer import load_tokenizer

pytestmark = pytest.mark.oracle
sentencepiece = pytest.importorskip("sentencepiece")

T5: dict[str, Any] = {
    "model_type": "unigram",
    "vocab_size": 700,
    "pad_id": 0,
    "eos_id": 1,
    "unk_id": 2,
    "bos_id": -1,
    "normalization_rule_name": "nmt_nfkc",
}
TRICKY = (
    "ﬁne Ｆｕｌｌ ½ ①",
    "e\u0301 \u00a0 \u3000x",
    "tab\tand\u200bnothing",
    "…",
    "İstanbul",
    "  a  b ",
)


def fields(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a protobuf message that are bytes; of others only what passes over them."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = raw[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(raw):
        number, kind = divmod(varint(), 8)
        if kind == 2:
            size = varint()
            yield number, raw[place : place + size]
            place += size
        elif kind == 0:
            varint()
        else:
            place += {1: 8, 5: 4}[kind]


@pytest.fixture(scope="module")
def trained() -> tuple[Any, dict[str, Any]]:
    """A processor, and the tokenizer.json of its pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()), model_writer=model, minloglevel=2, **T5
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    types = {0: PieceType.CONTROL, 1: PieceType.CONTROL, 2: PieceType.UNKNOWN}
    pieces = [
        Piece(
            processor.id_to_piece(token),
            processor.get_score(token),
            types.get(token, PieceType.NORMAL),
        )
        for token in range(processor.get_piece_size())
    ]
    normalizer = dict(fields(model.getvalue()))[3]
    compiled = dict(fields(normalizer))[2]
    assert len(compiled) > 10_000
    settings = PieceSettings(unknown=2, end=1, space_prefix=True, extra_spaces_removed=True)
    return processor, unigram_tokenizer(pieces, settings, np.frombuffer(compiled, np.uint8))


def test_every_text_has_the_tokens_of_sentencepiece_from_either_file(
    trained: tuple[Any, dict[str, Any]], tmp_path: Path
) -> None:
    processor, content = trained
    folder = write_source_model(
        tmp_path / "m",
        vocab_size=processor.get_piece_size() + 9,
        relative_attention_max_distance=128,
    )
    (folder / "tokenizer.json").write_text(json.dumps(content))
    checkpoint = open_checkpoint(folder)
    types = {spec.name: "F32" for spec in checkpoint.plan.tensors() if spec.matrix}
    write_gguf(checkpoint, tmp_path / "m.gguf", types, encode_plain(checkpoint), "t5")
    readers = [
        load_tokenizer(each.files) for each in (checkpoint, open_checkpoint(tmp_path / "m.gguf"))
    ]
    compared = 0
    for text in (*texts(), *TRICKY):
        if "\n" in text or "▁" in text or "<" in text:
            continue  # to SentencePiece a line is a text, and marks are its own
        expected = processor.encode(text)
        for reader in readers:
            assert reader.encode(text) == [*expected, 1], text
            assert reader.decode(expected) == processor.decode(expected).replace(" ⁇ ", "")
        compared += 1
    assert compared > 20
