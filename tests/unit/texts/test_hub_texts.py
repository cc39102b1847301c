"""Data sets of the hub: the right files of the right revision, joined as the papers join them."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from crumb.errors import TextError
from crumb.texts.hub_texts import HUB_TEXTS, Use
from crumb.texts.sources import read_text

TRAIN = "en/c4-train.00000-of-01024.json.gz"
VALIDATION = "en/c4-validation.00000-of-00008.json.gz"


def shard(texts: list[str]) -> bytes:
    """A shard as allenai/c4 stores it: gzip of one JSON object a line."""
    lines = [json.dumps({"text": text, "timestamp": "t", "url": "u"}) for text in texts]
    return gzip.compress("\n".join(lines).encode() + b"\n")


def test_c4_reads_another_shard_for_each_use(hub_cache: Callable[..., Path]) -> None:
    hub_cache(
        "allenai/c4", {TRAIN: shard(["é", "b\nc"]), VALIDATION: shard(["x", "y"])}, kind="dataset"
    )
    assert read_text("c4", Use.CALIBRATION).text == "é b\nc"
    assert read_text("c4", Use.EVALUATION).text == "x y"


def test_c4_is_cut_after_1100_documents_and_256_windows(hub_cache: Callable[..., Path]) -> None:
    # A line that is no JSON stands after the documents that count: it must never be read.
    content = gzip.decompress(shard([str(index) for index in range(1100)])) + b"{broken"
    hub_cache("allenai/c4", {VALIDATION: gzip.compress(content)}, kind="dataset")
    text = read_text("c4", Use.EVALUATION)
    assert text.text.split(" ") == [str(index) for index in range(1100)]
    assert text.tokens_kept == 256 * 2048


BROKEN = {
    "not gzip": (b"plain text", "cannot be read as gzip"),
    "gzip cut short": (shard(["a" * 1000])[:-20], "cannot be read as gzip"),
    "gzip with a flipped bit": (
        shard(["a" * 1000])[:30] + b"\xff\xff" + shard(["a" * 1000])[32:],
        "cannot be read as gzip|not a JSON object",
    ),
    "no json": (gzip.compress(b"{"), "line 1: not a JSON object"),
    "a second line that is a list": (gzip.compress(b'{"text": "a"}\n[1]\n'), "line 2: not a JSON"),
    "no text": (gzip.compress(b'{"url": "a"}\n'), "line 1: not a JSON object"),
    "text that is a number": (gzip.compress(b'{"text": 5}\n'), "line 1: .*its text is not text"),
    "not utf-8": (gzip.compress(b'{"text": "\xff"}\n'), "line 1: not a JSON object"),
    "deep": (gzip.compress(b"[" * 100_000), "line 1: not a JSON object"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_shard_is_refused_with_its_place(
    hub_cache: Callable[..., Path], case: str
) -> None:
    content, words = BROKEN[case]
    hub_cache("allenai/c4", {VALIDATION: content}, kind="dataset")
    with pytest.raises(TextError, match=words):
        read_text("c4", Use.EVALUATION)


PLACES = {
    ("wikitext2", Use.CALIBRATION): (
        "Salesforce/wikitext",
        "main",
        "wikitext-2-raw-v1/train-00000-of-00001.parquet",
    ),
    ("wikitext2", Use.EVALUATION): (
        "Salesforce/wikitext",
        "main",
        "wikitext-2-raw-v1/test-00000-of-00001.parquet",
    ),
    ("ptb", Use.CALIBRATION): (
        "ptb-text-only/ptb_text_only",
        "refs/convert/parquet",
        "penn_treebank/train/0000.parquet",
    ),
    ("ptb", Use.EVALUATION): (
        "ptb-text-only/ptb_text_only",
        "refs/convert/parquet",
        "penn_treebank/test/0000.parquet",
    ),
}


@pytest.mark.parametrize(("name", "use"), PLACES)
def test_a_parquet_set_without_pyarrow_says_how_to_install_it(
    hub_cache: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str, use: Use
) -> None:
    repository, revision, file = PLACES[name, use]
    hub_cache(repository, {file: b"PAR1"}, revision=revision, kind="dataset")
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # an import of it now fails
    with pytest.raises(TextError, match=r"pip install 'crumb-llm\[parquet\]'.*local text file"):
        read_text(name, use)


@pytest.mark.parametrize("name", HUB_TEXTS)
def test_a_data_set_outside_the_cache_says_how_to_reach_it(
    hub_cache: Callable[..., Path], name: str
) -> None:
    del hub_cache  # there is no network either
    with pytest.raises(TextError, match=f"{name} .*HF_HUB_OFFLINE.*local text file"):
        read_text(name, Use.CALIBRATION)
