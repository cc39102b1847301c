"""Pages of a cache on disk: a conversation goes on after a restart without being read again.

In: tokens of a prompt, full pages as an engine computed them. Out: the bytes of pages that hold the
beginning of a prompt. A page's name is a hash of the model, of how it runs and of every token up
to its end. Nothing on disk is trusted: a file of another size, content or text is a miss and goes.
Refuses a directory that cannot be written.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from crumb.errors import UsageError
from crumb.kernels.engine import PAGE_TOKENS

Bytes = NDArray[np.uint8]

MAGIC = b"crumb page 1\n"
SUFFIX = ".page"
DIGEST_BYTES = 32
DISK_BYTES = 8 << 30
"""What a directory may hold; the pages that were not used the longest go first."""

MOST_QUEUED_BYTES = 256 << 20
"""Copies of pages that wait to be written; what comes on top is left for the next time."""

READERS = 4
"""Files that are read and checked at once."""


class PageStore:
    """The pages of one model in one directory; shared with other processes."""

    def __init__(
        self, directory: Path, identity: str, page_bytes: int, most_bytes: int = DISK_BYTES
    ) -> None:
        """`identity`: all that the content of a page depends on, but its tokens.

        Raises: UsageError.
        """
        self._root = hashlib.sha256(identity.encode()).digest()
        self._directory, self._page_bytes, self._most_bytes = directory, page_bytes, most_bytes
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            sizes = {path.name: path.stat().st_size for path in directory.glob(f"*{SUFFIX}")}
        except OSError as error:
            raise UsageError(
                f"the directory of the cache cannot be used: {error.strerror}", where=directory
            ) from error
        self._names, self._total_bytes = set(sizes), sum(sizes.values())
        self._queue: SimpleQueue[tuple[str, bytes, Bytes] | None] = SimpleQueue()
        self._queued_bytes = 0
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None

    def read(self, tokens: Sequence[int], first_page: int) -> list[Bytes]:
        """Pages of a text from one on, as many as are here in a row; from any thread.

        The last token is in none of them: its logits are still wanted.
        """
        most = (len(tokens) - 1) // PAGE_TOKENS
        wanted = list(self._keys(tokens, most))[first_page:]
        here = list(takewhile(lambda pair: pair[0] in self._names, wanted))
        if not here:
            return []
        with ThreadPoolExecutor(READERS) as pool:
            pages = list(pool.map(lambda pair: self._load(*pair), here))
        whole: list[Bytes] = []
        for page in pages:
            if page is None:
                break
            whole.append(page)
        return whole

    def lacks(self, tokens: Sequence[int], pages: int) -> list[int]:
        """Which of a text's first pages are not here."""
        names = (name for name, _ in self._keys(tokens, pages))
        return [index for index, name in enumerate(names) if name not in self._names]

    def write(self, tokens: Sequence[int], index: int, content: Bytes) -> bool:
        """Take a copy of a page, to be written beside other work; False where too many wait."""
        with self._lock:
            if self._queued_bytes + len(content) > MOST_QUEUED_BYTES:
                return False
            self._queued_bytes += len(content)
        *_, (name, own) = self._keys(tokens, index + 1)
        self._names.add(name)
        if self._writer is None:
            self._writer = threading.Thread(target=self._work, name="crumb pages", daemon=True)
            self._writer.start()
        self._queue.put((name, own, content))
        return True

    def close(self) -> None:
        """Wait until all that was taken is written."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._queue.put(None)
            writer.join()

    def renew_after_fork(self) -> None:
        """In a child process: the writing thread is the parent's, with all it had to write."""
        self._writer, self._queued_bytes = None, 0
        self._queue, self._lock = SimpleQueue(), threading.Lock()

    def _keys(self, tokens: Sequence[int], pages: int) -> Iterator[tuple[str, bytes]]:
        """Names of a text's first pages, and the tokens of each as bytes."""
        key = self._root
        for begin in range(0, pages * PAGE_TOKENS, PAGE_TOKENS):
            own = np.asarray(tokens[begin : begin + PAGE_TOKENS], "<i4").tobytes()
            key = hashlib.sha256(key + own).digest()
            yield key.hex() + SUFFIX, own

    def _load(self, name: str, own: bytes) -> Bytes | None:
        path = self._directory / name
        try:
            content = path.read_bytes()
            os.utime(path)  # it was used
        except OSError:
            self._names.discard(name)
            return None
        begin = len(MAGIC) + len(own) + DIGEST_BYTES
        head, digest = content[: len(MAGIC) + len(own)], content[begin - DIGEST_BYTES : begin]
        if (
            len(content) != begin + self._page_bytes
            or head != MAGIC + own
            or digest != _digest(name, own, memoryview(content)[begin:])
        ):
            self._names.discard(name)
            path.unlink(missing_ok=True)
            return None
        return np.frombuffer(content, np.uint8, offset=begin)

    def _work(self) -> None:
        """The thread that writes."""
        while (item := self._queue.get()) is not None:
            name, own, content = item
            try:
                self._save(name, own, content)
            except OSError:  # a full disk is no reason to end a conversation
                self._names.discard(name)
            with self._lock:
                self._queued_bytes -= len(content)

    def _save(self, name: str, own: bytes, content: Bytes) -> None:
        size = len(MAGIC) + len(own) + DIGEST_BYTES + len(content)
        if self._total_bytes + size > self._most_bytes:
            self._make_room(size)
        path = self._directory / name
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                file.write(MAGIC + own + _digest(name, own, content.data))
                file.write(content.data)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        self._total_bytes += size

    def _make_room(self, size: int) -> None:
        """Remove the longest unused, a tenth more than must go; other processes remove too."""
        found = []
        for path in self._directory.glob(f"*{SUFFIX}"):
            try:
                status = path.stat()
            except OSError:
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        self._total_bytes = sum(each[1] for each in found)
        for _, bytes_, path in sorted(found):
            if self._total_bytes + size <= self._most_bytes * 9 // 10:
                return
            path.unlink(missing_ok=True)
            self._names.discard(path.name)
            self._total_bytes -= bytes_


def _digest(name: str, own: bytes, content: memoryview) -> bytes:
    """Of all that a file holds, and of its name."""
    total = hashlib.sha256(name.encode() + own)
    total.update(content)
    return total.digest()
