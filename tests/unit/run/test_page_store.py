"""A conversation goes on after a restart as if it had never ended; damaged files are misses."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exhaustive import exhaustive
from live_server import until

import crumb
from crumb.embedded import MODELS
from crumb.errors import UsageError
from crumb.kernels.engine import PAGE_TOKENS
from crumb.run import page_store
from crumb.run.generation import Generation
from crumb.run.language_model import LanguageModel
from crumb.run.page_store import ABANDONED_SECONDS, PageStore, next_key

TEXT = "Once upon a time there was a girl who lived by the sea. " * 12
PAGE_BYTES = 96


def loaded(directory: Path, **options: object) -> LanguageModel:
    """The embedded model, with its pages on disk."""
    return crumb.load(MODELS["novella-7m"], context_tokens=512, cache_dir=directory, **options)


def told(directory: Path, **options: object) -> Generation:
    """What a new process would say."""
    with loaded(directory, **options) as model:
        return model.generate(TEXT, max_tokens=12)


def test_a_restart_reads_nothing_again_and_says_the_same(tmp_path: Path) -> None:
    first, again = told(tmp_path), told(tmp_path)
    assert first.cached_tokens == first.restored_tokens == 0
    assert again.restored_tokens == again.cached_tokens
    assert again.cached_tokens == (again.prompt_tokens - 1) // PAGE_TOKENS * PAGE_TOKENS
    assert again.tokens == first.tokens
    with loaded(tmp_path) as model:
        longer = model.generate(TEXT + first.text + " And then", max_tokens=12)
    assert longer.cached_tokens > again.cached_tokens
    with crumb.load(MODELS["novella-7m"], context_tokens=512) as model:
        cold = model.generate(TEXT + first.text + " And then", max_tokens=12)
    assert cold.cached_tokens == 0
    assert longer.tokens == cold.tokens


@pytest.mark.parametrize("cache", ["f16", "int8", "f32"])
def test_every_kind_of_cache_is_kept_apart(cache: str, tmp_path: Path) -> None:
    told(tmp_path, cache="f16")
    first = told(tmp_path, cache=cache)
    assert (first.cached_tokens > 0) == (cache == "f16")
    again = told(tmp_path, cache=cache)
    assert again.cached_tokens > 0
    assert again.tokens == first.tokens


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "one bit": lambda content: content[:-7] + bytes([content[-7] ^ 4]) + content[-6:],
    "its tokens": lambda content: content[:15] + b"\1" + content[16:],
    "its head": lambda content: b"x" + content[1:],
    "its end": lambda content: content[:-1],
    "more": lambda content: content + b"\0",
    "all": lambda content: b"",
}


@pytest.mark.parametrize("what", ["one bit", *exhaustive(*list(DAMAGE)[1:])])
def test_a_text_whose_files_are_damaged_is_read_again(what: str, tmp_path: Path) -> None:
    first = told(tmp_path)
    files = sorted(tmp_path.glob("*.page"))
    assert len(files) >= 3
    for path in files:
        path.write_bytes(DAMAGE[what](path.read_bytes()))
    again = told(tmp_path)
    assert again.cached_tokens == 0
    assert again.tokens == first.tokens
    assert told(tmp_path).cached_tokens > 0


def test_files_under_each_others_names_are_misses(tmp_path: Path) -> None:
    first = told(tmp_path)
    one, two, *_ = sorted(tmp_path.glob("*.page"))
    contents = one.read_bytes(), two.read_bytes()
    one.write_bytes(contents[1])
    two.write_bytes(contents[0])
    again = told(tmp_path)
    assert again.cached_tokens < again.prompt_tokens - PAGE_TOKENS
    assert again.tokens == first.tokens


def test_only_its_owner_may_read_what_was_said(tmp_path: Path) -> None:
    directory = tmp_path / "pages"
    told(directory)
    assert directory.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.iterdir())


def page(number: int) -> np.ndarray:
    """Some content."""
    return np.full(PAGE_BYTES, number, np.uint8)


def store_of(directory: Path, most_pages: int = 1000, identity: str = "a") -> PageStore:
    """A store of small pages."""
    return PageStore(directory, identity, PAGE_BYTES, most_pages * (PAGE_BYTES + 109))


def keys_of(store: PageStore, tokens: list[int]) -> list[tuple[bytes, list[int]]]:
    """Keys and tokens of all pages of a text."""
    pages, key = [], store.root
    for begin in range(0, len(tokens) - PAGE_TOKENS + 1, PAGE_TOKENS):
        own = tokens[begin : begin + PAGE_TOKENS]
        key = next_key(key, own)
        pages.append((key, own))
    return pages


def write(store: PageStore, tokens: list[int], index: int, content: np.ndarray) -> bool:
    """One page of a text."""
    key, own = keys_of(store, tokens)[index]
    return store.write(key, own, lambda: content)


def numbers(store: PageStore, tokens: list[int], first: int) -> list[int]:
    """The content of the pages that are read."""
    stored = store.read(tokens, first)
    return [] if stored is None else [int(each[0]) for each in stored.pages]


def test_pages_are_read_as_far_as_they_go_on(tmp_path: Path) -> None:
    tokens = list(range(5 * PAGE_TOKENS + 3))
    store = store_of(tmp_path)
    for index in (0, 1, 3):
        assert not store.holds(keys_of(store, tokens)[index][0])
        assert write(store, tokens, index, page(index))
        assert store.holds(keys_of(store, tokens)[index][0])
    store.close()
    again = store_of(tmp_path)
    assert numbers(again, tokens, 0) == [0, 1]
    assert numbers(again, tokens, 1) == [1]
    assert numbers(again, tokens, 2) == []
    assert numbers(again, tokens, 3) == [3]
    assert numbers(again, [9, *tokens[1:]], 0) == []
    assert numbers(store_of(tmp_path, identity="b"), tokens, 0) == []


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_a_miss_and_goes(what: str, tmp_path: Path) -> None:
    tokens = list(range(2 * PAGE_TOKENS + 1))
    store = store_of(tmp_path)
    for index in (0, 1):
        assert write(store, tokens, index, page(index))
    store.close()
    first, _ = (tmp_path / f"{key.hex()}.page" for key, _ in keys_of(store, tokens))
    first.write_bytes(DAMAGE[what](first.read_bytes()))
    again = store_of(tmp_path)
    assert numbers(again, tokens, 0) == []
    assert not first.exists()
    assert numbers(again, tokens, 1) == [1]


def test_the_last_token_is_never_read_from_disk(tmp_path: Path) -> None:
    tokens = list(range(2 * PAGE_TOKENS))
    store = store_of(tmp_path)
    for index in (0, 1):
        write(store, tokens, index, page(index))
    store.close()
    assert numbers(store, tokens, 0) == [0]


def test_a_full_directory_lets_the_longest_unused_go(tmp_path: Path) -> None:
    texts = [[number] * (PAGE_TOKENS + 1) for number in range(30)]
    for number, tokens in enumerate(texts):
        store = store_of(tmp_path, most_pages=10)
        write(store, tokens, 0, page(number))
        store.close()
        assert numbers(store, texts[0], 0) or number > 20  # reading is a use
    assert len(list(tmp_path.glob("*.page"))) <= 10
    assert numbers(store_of(tmp_path), texts[-1], 0)


def test_two_servers_share_a_directory(tmp_path: Path) -> None:
    texts = [[number] * (PAGE_TOKENS + 1) for number in range(40)]
    stores = [store_of(tmp_path, most_pages=20) for _ in range(2)]

    def work(store: PageStore) -> None:
        for number, tokens in enumerate(texts):
            write(store, tokens, 0, page(number))
            assert numbers(store, texts[number // 2], 0) in ([], [number // 2])
        store.close()

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = list(tmp_path.iterdir())
    assert 0 < len(files) <= 21
    assert {path.suffix for path in files} == {".page"}
    there = [numbers(store_of(tmp_path), tokens, 0) for tokens in texts]
    assert sum(map(len, there)) == len(files)
    assert all(each in ([], [number]) for number, each in enumerate(there))


@pytest.mark.parametrize("code", [errno.ENOSPC, *exhaustive(errno.EROFS, errno.EACCES)])
def test_a_disk_that_takes_nothing_is_one_line_and_is_tried_again(
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = told(tmp_path / "whole")
    attempts = []

    def refuse(path: Any, flags: int, mode: int) -> int:
        attempts.append((flags, mode))
        raise OSError(code, os.strerror(code), str(path))

    with monkeypatch.context() as patch, loaded(tmp_path / "pages") as model:
        patch.setattr(page_store.os, "open", refuse)
        assert model.generate(TEXT, max_tokens=12).tokens == first.tokens
        assert model.generate(TEXT + "!", max_tokens=12, temperature=1.0).error is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert os.strerror(code) in line
    assert len(attempts) == 1
    assert not list((tmp_path / "pages").iterdir())
    monkeypatch.setattr(page_store, "PAUSE_SECONDS", 0.0)
    with loaded(tmp_path / "pages") as model:
        with monkeypatch.context() as patch:
            patch.setattr(page_store.os, "open", refuse)
            model.generate(TEXT, max_tokens=12)
            until(lambda: len(attempts) > 1)
        model.generate(TEXT, max_tokens=12)
        model.generate(TEXT, max_tokens=12)
    assert told(tmp_path / "pages").restored_tokens > 0


def test_pages_that_cannot_be_touched_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = told(tmp_path)

    def refuse(path: Any, *rest: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path, *rest[:0])

    for name in ("open", "utime", "unlink"):
        monkeypatch.setattr(page_store.os, name, refuse)
    again = told(tmp_path)
    assert again.restored_tokens > 0
    assert again.tokens == first.tokens


def test_pages_are_written_while_a_text_is_read_not_at_its_end(tmp_path: Path) -> None:
    with loaded(tmp_path) as model:
        pieces = model.stream(TEXT, max_tokens=200, ignore_end=True)
        next(pieces)
        whole = (len(model.tokens_of(TEXT)) - 1) // PAGE_TOKENS
        until(lambda: len(list(tmp_path.glob("*.page"))) >= whole)
        pieces.close()


def test_what_waits_in_memory_after_reading_has_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = list(range(3 * PAGE_TOKENS + 1))
    store = store_of(tmp_path)
    for index in range(3):
        write(store, tokens, index, page(index))
    store.close()
    monkeypatch.setattr(page_store, "MOST_READ_BYTES", 5 * PAGE_BYTES)
    first = store.read(tokens, 0)
    assert first is not None
    assert store.read(tokens, 0) is None
    assert numbers(store, tokens, 1) == [1, 2]
    del first
    assert numbers(store, tokens, 0) == [0, 1, 2]


def test_files_that_a_killed_process_left_go(tmp_path: Path) -> None:
    for name, age in (("old.1-a-0.tmp", 2 * ABANDONED_SECONDS), ("new.1-a-1.tmp", 0.0)):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    store_of(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["new.1-a-1.tmp"]


def test_a_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be used"):
        store_of(tmp_path / "file" / "pages")
