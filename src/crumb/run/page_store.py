"""Pages of a cache on disk: a conversation goes on after a restart without being read again.

In: tokens of a prompt, full pages as an engine computed them. Out: the bytes of pages that hold the
beginning of a prompt. A page's name is a hash of the model, of how it runs and of every token up
to its end. Nothing on disk is trusted: a file of another size, content or text is a miss and goes.
A disk that takes no more is one line in the log. Refuses what cannot be a directory.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from crumb.errors import UsageError
from crumb.kernels.engine import PAGE_TOKENS

Bytes = NDArray[np.uint8]

LOGGER = logging.getLogger("crumb.page_store")

MAGIC = b"crumb page 1\n"
SUFFIX, TEMPORARY = ".page", ".tmp"
DIGEST_BYTES = 32
DISK_BYTES = 8 << 30
"""What a directory may hold; the pages that were not used the longest go first."""

MOST_QUEUED_BYTES = 256 << 20
"""Copies of pages that wait to be written; what comes on top is left for the next time."""

MOST_READ_BYTES = 512 << 20
"""Pages that were read and not yet taken into a cache; what comes on top is a miss."""

READERS = 4
"""Files that are read and checked at once."""

PAUSE_SECONDS = 60.0
"""How long nothing is written after a write failed."""

ABANDONED_SECONDS = 3600.0
"""After which a temporary file is one that a killed process left."""


@dataclass(eq=False)
class StoredPages:
    """Pages that were read from disk, in a row: the first one's place in its text, and bytes."""

    first: int
    pages: Sequence[Bytes]


def open_directory(directory: Path) -> dict[str, int]:
    """Make it where it is not; the sizes of its pages. Raises: UsageError."""
    sizes: dict[str, int] = {}
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX):
                    sizes[entry.name] = _size(entry)
                elif entry.name.endswith(TEMPORARY):
                    _remove_abandoned(Path(entry.path))
    except OSError as error:
        raise UsageError(
            f"the directory of the cache cannot be used: {error.strerror}", where=directory
        ) from error
    return sizes


class PageStore:
    """The pages of one model in one directory; shared with other processes."""

    def __init__(
        self, directory: Path, identity: str, page_bytes: int, most_bytes: int = DISK_BYTES
    ) -> None:
        """`identity`: all that the content of a page depends on, but its tokens.

        Raises: UsageError.
        """
        self.root = hashlib.sha256(identity.encode()).digest()
        self._directory, self._page_bytes, self._most_bytes = directory, page_bytes, most_bytes
        sizes = open_directory(directory)
        self._names, self.total_bytes = set(sizes), sum(sizes.values())
        self._is_failing, self._pause_end = False, 0.0
        self._numbers = count()
        self._read_bytes = 0
        self._make_queue()

    def _make_queue(self) -> None:
        self._queue: SimpleQueue[tuple[str, bytes, Bytes] | None] = SimpleQueue()
        self._queued_bytes = 0
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None

    def read(self, tokens: Sequence[int], first_page: int) -> StoredPages | None:
        """Pages of a text from one on, as many as are here in a row; from any thread.

        The last token is in none of them: its logits are still wanted.
        """
        key, here = self.root, []
        for index in range((len(tokens) - 1) // PAGE_TOKENS):
            own = tokens[index * PAGE_TOKENS : (index + 1) * PAGE_TOKENS]
            key = next_key(key, own)
            if index >= first_page:
                if name_of(key) not in self._names:
                    break
                here.append((name_of(key), bytes_of(own)))
        reserved = len(here) * self._page_bytes
        if not here or not self._reserve(reserved):
            return None
        run_of_pages = StoredPages(first_page, ())
        weakref.finalize(run_of_pages, self._reserve, -reserved)
        with ThreadPoolExecutor(READERS) as pool:
            pages = list(pool.map(self._load_some, [here[k::READERS] for k in range(READERS)]))
        whole: list[Bytes] = []
        for index in range(len(here)):
            page = pages[index % READERS].get(index // READERS)
            if page is None:
                break
            whole.append(page)
        run_of_pages.pages = whole
        return run_of_pages if whole else None

    def _reserve(self, size: int) -> bool:
        """Take memory for pages that are read, or give it back; whether there is as much."""
        with self._lock:
            if size > 0 and self._read_bytes + size > MOST_READ_BYTES:
                return False
            self._read_bytes += size
            return True

    def holds(self, key: bytes) -> bool:
        """Whether a page is here, or on its way."""
        return name_of(key) in self._names

    def write(self, key: bytes, own: Sequence[int], copy: Callable[[], Bytes]) -> bool:
        """Take a copy of a page, to be written beside other work; False where it is not taken."""
        if self._is_failing and time.monotonic() < self._pause_end:
            return False
        with self._lock:
            if self._queued_bytes + self._page_bytes > MOST_QUEUED_BYTES:
                return False
            self._queued_bytes += self._page_bytes
            if self._writer is None:
                self._writer = threading.Thread(target=self._work, name="crumb pages", daemon=True)
                self._writer.start()
        self._names.add(name_of(key))
        self._queue.put((name_of(key), bytes_of(own), copy()))
        return True

    def close(self) -> None:
        """Wait until all that was taken is written."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._queue.put(None)
            writer.join()

    def renew_after_fork(self) -> None:
        """In a child process: the writing thread is the parent's, with all it had to write."""
        self._make_queue()

    def _load_some(self, here: Sequence[tuple[str, bytes]]) -> dict[int, Bytes]:
        """Pages by their place among these, up to the first that is none."""
        pages: dict[int, Bytes] = {}
        for index, (name, own) in enumerate(here):
            page = self._load(name, own)
            if page is None:
                break
            pages[index] = page
        return pages

    def _load(self, name: str, own: bytes) -> Bytes | None:
        path = self._directory / name
        try:
            content = path.read_bytes()
        except OSError:
            self._names.discard(name)
            return None
        begin = len(MAGIC) + len(own) + DIGEST_BYTES
        head, digest = content[: len(MAGIC) + len(own)], content[begin - DIGEST_BYTES : begin]
        is_whole = (
            len(content) == begin + self._page_bytes
            and head == MAGIC + own
            and digest == _digest(name, own, memoryview(content)[begin:])
        )
        with suppress(OSError):  # one that cannot be written is read all the same
            if is_whole:
                os.utime(path)  # it was used
            else:
                self._names.discard(name)
                path.unlink(missing_ok=True)
        return np.frombuffer(content, np.uint8, offset=begin) if is_whole else None

    def _work(self) -> None:
        """The thread that writes."""
        while (item := self._queue.get()) is not None:
            name, own, content = item
            try:
                if self._is_failing and time.monotonic() < self._pause_end:
                    self._names.discard(name)
                else:
                    self._save(name, own, content)
                    self._is_failing = False
            except OSError as error:
                self._names.discard(name)
                self._fail(error)
            with self._lock:
                self._queued_bytes -= self._page_bytes

    def _fail(self, error: OSError) -> None:
        """A full disk or one that is only read is no reason to end a conversation."""
        if not self._is_failing:
            LOGGER.warning(
                "%s: pages of the cache cannot be written: %s; conversations go on without, and "
                "it is tried again every %.0f seconds",
                self._directory,
                error.strerror,
                PAUSE_SECONDS,
            )
        self._is_failing, self._pause_end = True, time.monotonic() + PAUSE_SECONDS

    def _save(self, name: str, own: bytes, content: Bytes) -> None:
        size = len(MAGIC) + len(own) + DIGEST_BYTES + len(content)
        if self.total_bytes + size > self._most_bytes:
            self._make_room(size)
        path = self._directory / name
        number = f".{os.getpid()}-{id(self):x}-{next(self._numbers)}"
        temporary = path.with_suffix(number + TEMPORARY)
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                file.write(MAGIC + own + _digest(name, own, content.data))
                file.write(content.data)
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        self.total_bytes += size

    def _make_room(self, size: int) -> None:
        """Remove the longest unused, a tenth more than must go; other processes remove too."""
        used = []
        for path in self._directory.glob(f"*{SUFFIX}"):
            try:
                status = path.stat()
            except OSError:
                continue
            used.append((status.st_mtime_ns, status.st_size, path))
        self.total_bytes = sum(each[1] for each in used)
        for _, bytes_, path in sorted(used):
            if self.total_bytes + size <= self._most_bytes * 9 // 10:
                return
            path.unlink(missing_ok=True)
            self._names.discard(path.name)
            self.total_bytes -= bytes_


def next_key(key: bytes, own: Sequence[int]) -> bytes:
    """Of the page behind one with this key: of its tokens and of all before them."""
    return hashlib.sha256(key + bytes_of(own)).digest()


def bytes_of(own: Sequence[int]) -> bytes:
    """A page's tokens as they are hashed and written."""
    return struct.pack(f"<{len(own)}i", *own)


def name_of(key: bytes) -> str:
    """The file of the page with this key."""
    return key.hex() + SUFFIX


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # another process has removed it
        return 0


def _remove_abandoned(path: Path) -> None:
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
            path.unlink()


def _digest(name: str, own: bytes, content: memoryview) -> bytes:
    """Of all that a file holds, and of its name."""
    total = hashlib.sha256(name.encode() + own)
    total.update(content)
    return total.digest()
