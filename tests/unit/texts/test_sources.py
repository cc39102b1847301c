"""Names become texts: embedded excerpts, data sets, files and directories, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crumb.errors import TextError
from crumb.texts.hub_texts import Use
from crumb.texts.sources import DOMAINS, EXCERPTS, read_text

EVALUATION = Use.EVALUATION


@pytest.mark.parametrize("name", EXCERPTS)
def test_an_embedded_text_is_there_without_any_network(name: str) -> None:
    text = read_text(name, EVALUATION)
    assert len(text.text.encode()) > 100_000  # both excerpts are about 100 KB, see LICENSE.md
    assert text.text.startswith(" \n = Robert") or name == "excerpt-evaluation"
    assert text.name == name
    assert text.tokens_kept is None


def test_the_embedded_domains_are_about_a_megabyte_and_share_nothing_with_the_excerpts() -> None:
    texts = {name: read_text(name, Use.CALIBRATION).text for name in DOMAINS}
    assert 0.8e6 < sum(len(text.encode()) for text in texts.values()) < 1.2e6
    held_out = [set(runs(read_text(name, EVALUATION).text)) for name in EXCERPTS]
    for text in texts.values():
        assert not any(seen.intersection(runs(text)) for seen in held_out)


def runs(text: str) -> Iterator[tuple[str, ...]]:
    """Every twelve words that follow each other."""
    words = text.split()
    return zip(*(words[begin:] for begin in range(12)), strict=False)


def test_calibration_and_evaluation_excerpts_share_no_article() -> None:
    titles = [
        {line for line in read_text(name, EVALUATION).text.splitlines() if line.startswith(" = ")}
        for name in EXCERPTS
    ]
    sections = {title for title in titles[0] & titles[1] if title.startswith(" = = ")}
    assert titles[0] & titles[1] == sections


def test_a_file_is_read_exactly_as_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_bytes("één\r\ntwo\n\n".encode())
    text = read_text(str(path), EVALUATION)
    assert text.text == "één\r\ntwo\n\n"
    assert text.name == str(path)
    assert text.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_directory_is_its_text_files_in_path_order(tmp_path: Path) -> None:
    files = {
        "b.txt": "B",
        "a/z.py": "AZ",
        "a/notes.MD": "AN",
        "a.txt": "A",
        ".hidden/x.txt": "no",
        ".x.txt": "no",
        "a/image.png": "no",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    # Parts are compared, so a folder comes where its own name stands: a before a.txt.
    assert read_text(str(tmp_path), EVALUATION).text == "AN\n\nAZ\n\nA\n\nB"


def test_a_directory_without_text_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"\0")
    with pytest.raises(TextError, match=r"no text files in this directory .*\.md"):
        read_text(str(tmp_path), EVALUATION)


@pytest.mark.parametrize("inside_a_directory", [False, True])
def test_a_file_that_is_not_utf8_is_refused_at_its_byte(
    tmp_path: Path, inside_a_directory: bool
) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"caf\xe9 au lait")
    with pytest.raises(TextError, match=r"latin1\.txt: .*byte 0xe9 at offset 3"):
        read_text(str(tmp_path if inside_a_directory else path), EVALUATION)


@pytest.mark.parametrize("content", ["", " \n\t\n"])
def test_an_empty_text_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.txt").write_text(content)
    with pytest.raises(TextError, match="empty"):
        read_text(str(tmp_path / "x.txt"), EVALUATION)


@pytest.mark.parametrize("name", ["", "nowhere.txt", "x" * 5000, "a\0b", "~nobody-here/x"])
def test_a_text_that_is_nowhere_is_refused_with_the_names_there_are(name: str) -> None:
    with pytest.raises(TextError, match="wikitext2, ptb, c4, or the path") as caught:
        read_text(name, EVALUATION)
    assert len(str(caught.value)) < 600


def test_a_name_nearly_right_is_suggested() -> None:
    with pytest.raises(TextError, match="Did you mean wikitext2"):
        read_text("wikitext-2", EVALUATION)


def test_a_known_name_wins_over_a_file_and_the_file_has_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub_cache: Callable[..., Path]
) -> None:
    """Results that say wikitext2 must mean WikiText-2, whatever lies in the working directory."""
    del hub_cache  # nothing is in the cache, and there is no network
    monkeypatch.chdir(tmp_path)
    Path("wikitext2").write_text("mine")
    assert read_text("./wikitext2", EVALUATION).text == "mine"
    with pytest.raises(TextError, match="not in the hub's cache"):
        read_text("wikitext2", EVALUATION)


def test_an_unreadable_directory_is_refused_not_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left out silently, the same name would mean another text on another machine."""
    import os

    def scandir(path: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(TextError, match="cannot be read: Permission denied"):
        read_text(str(tmp_path), EVALUATION)
