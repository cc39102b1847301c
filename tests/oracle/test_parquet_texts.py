"""Data sets stored as parquet: files as the hub has them, in its cache layout, read by pyarrow."""

from __future__ import annotations

import io
from pathlib import Path

import huggingface_hub.constants
import pytest

from crumb.errors import TextError
from crumb.texts.hub_texts import Use
from crumb.texts.sources import read_text

pytestmark = pytest.mark.oracle
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WIKITEXT = ("Salesforce/wikitext", "main")
PTB = ("ptb-text-only/ptb_text_only", "refs/convert/parquet")
WIKITEXT_TEST = "wikitext-2-raw-v1/test-00000-of-00001.parquet"


def table(**columns: list[object]) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out, row_group_size=2)
    return out.getvalue()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def store(cache: Path, place: tuple[str, str], file: str, content: bytes) -> None:
    """Put a file where a download would have put it."""
    repository, revision = place
    root = cache / f"datasets--{repository.replace('/', '--')}"
    for path, data in (
        (f"refs/{revision}", COMMIT.encode()),
        (f"snapshots/{COMMIT}/{file}", content),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def test_wikitext2_joins_its_rows_with_empty_lines_between(cache: Path) -> None:
    """A row keeps its own newline, and an empty row stays a row, as in the papers' loaders."""
    rows: list[object] = ["", " = Title = \n", "", " Text é . \n"]
    store(cache, WIKITEXT, WIKITEXT_TEST, table(text=rows))
    store(
        cache, WIKITEXT, "wikitext-2-raw-v1/train-00000-of-00001.parquet", table(text=[" train \n"])
    )
    expected = "\n\n = Title = \n\n\n\n\n Text é . \n"
    assert read_text("wikitext2", Use.EVALUATION).text == expected
    assert read_text("wikitext2", Use.CALIBRATION).text == " train \n"
    assert read_text("wikitext2", Use.EVALUATION).tokens_kept is None


def test_ptb_joins_its_sentences_with_spaces(cache: Path) -> None:
    store(
        cache, PTB, "penn_treebank/test/0000.parquet", table(sentence=["no it was n't", "N N", "c"])
    )
    store(cache, PTB, "penn_treebank/train/0000.parquet", table(sentence=["aer banknote"]))
    assert read_text("ptb", Use.EVALUATION).text == "no it was n't N N c"
    assert read_text("ptb", Use.CALIBRATION).text == "aer banknote"


GOOD = table(text=["some text"] * 9)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as parquet"),
        (b"<html>not found</html>", "cannot be read as parquet"),
        (GOOD[:-5], "cannot be read as parquet"),
        (GOOD[: len(GOOD) // 2], "cannot be read as parquet"),
        (table(sentence=["a"]), "no such column .*expected text, found sentence"),
        (table(text=[1, 2]), "not text"),
        (table(text=["a", None]), "not text"),
    ],
)
def test_a_broken_parquet_file_is_refused(cache: Path, content: bytes, words: str) -> None:
    store(cache, WIKITEXT, WIKITEXT_TEST, content)
    with pytest.raises(TextError, match=words) as caught:
        read_text("wikitext2", Use.EVALUATION)
    assert "test-00000-of-00001.parquet" in str(caught.value)
