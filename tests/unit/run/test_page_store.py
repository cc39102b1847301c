"""A conversation goes on after a restart as if it had never ended; damaged files are misses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import crumb
from crumb.embedded import MODELS
from crumb.errors import UsageError
from crumb.kernels.engine import PAGE_TOKENS
from crumb.run.generation import Generation
from crumb.run.language_model import LanguageModel
from crumb.run.page_store import PageStore

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
    assert first.cached_tokens == 0
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


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_a_miss_and_goes(what: str, tmp_path: Path) -> None:
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


def test_pages_are_read_as_far_as_they_go_on(tmp_path: Path) -> None:
    tokens = list(range(5 * PAGE_TOKENS + 3))
    store = store_of(tmp_path)
    assert store.lacks(tokens, 5) == [0, 1, 2, 3, 4]
    for index in (0, 1, 3):
        assert store.write(tokens, index, page(index))
    store.close()
    again = store_of(tmp_path)
    assert [each[0] for each in again.read(tokens, 0)] == [0, 1]
    assert [each[0] for each in again.read(tokens, 1)] == [1]
    assert again.read(tokens, 2) == []
    assert [each[0] for each in again.read(tokens, 3)] == [3]
    assert again.lacks(tokens, 5) == [2, 4]
    assert again.read([9, *tokens[1:]], 0) == []
    assert store_of(tmp_path, identity="b").read(tokens, 0) == []


def test_the_last_token_is_never_read_from_disk(tmp_path: Path) -> None:
    tokens = list(range(2 * PAGE_TOKENS))
    store = store_of(tmp_path)
    for index in (0, 1):
        store.write(tokens, index, page(index))
    store.close()
    assert len(store.read(tokens, 0)) == 1


def test_a_full_directory_lets_the_longest_unused_go(tmp_path: Path) -> None:
    texts = [[number] * (PAGE_TOKENS + 1) for number in range(30)]
    for number, tokens in enumerate(texts):
        store = store_of(tmp_path, most_pages=10)
        store.write(tokens, 0, page(number))
        store.close()
        assert store.read(texts[0], 0) or number > 20  # reading is a use
    assert len(list(tmp_path.glob("*.page"))) <= 10
    assert store_of(tmp_path).read(texts[-1], 0)


def test_a_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be used"):
        store_of(tmp_path / "file" / "pages")
