"""The pieces of a delta file: byte arrays, each a zstandard frame of its own, one behind the other.

In: arrays to write, or a piece's bytes and the sizes its reader expects. Out: the piece, or arrays.
Frames have no magic number and no size: the reader knows what comes. Refuses pieces that are
damaged, end early, hold more than was asked for, or want a large window: nothing is allocated on
what a frame claims of itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crumb.errors import CheckpointError

Bytes = NDArray[np.uint8]

LEVEL = 19
LARGEST_WINDOW_BYTES = 8 << 20
"""What level 19 looks back at most, so no more memory than this is ever needed to read."""

PIECE_BYTES = 1 << 20
"""How much of a file or a plain tensor is in memory at a time."""


class PieceWriter:
    """Gathers arrays; each is a frame of its own, so that nothing is tuned to the one before."""

    def __init__(self) -> None:
        self._arrays: list[bytes] = []

    def put(self, array: NDArray[Any]) -> None:
        """Append an array's bytes."""
        self._arrays.append(array.tobytes())

    def gathered(self) -> bytes:
        """Everything, not compressed."""
        return b"".join(self._arrays)

    def finished(self) -> bytes:
        """Everything, compressed."""
        return b"".join(b"".join(compressed([array])) for array in self._arrays if array)


class PieceReader:
    """Hands out a piece's bytes in the sizes that its reader names."""

    def __init__(self, piece: Bytes, where: str) -> None:
        import zstandard

        self._where = where
        self._damage = zstandard.ZstdError
        decoder = zstandard.ZstdDecompressor(
            max_window_size=LARGEST_WINDOW_BYTES, format=zstandard.FORMAT_ZSTD1_MAGICLESS
        )
        self._stream = decoder.stream_reader(piece.tobytes(), read_across_frames=True)

    def take(self, count: int) -> Bytes:
        """The next bytes. Raises: CheckpointError where the piece is damaged or ends before."""
        taken = np.empty(count, np.uint8)
        done = 0
        while done < count:
            got = self._read(taken[done:])
            if not got:
                raise CheckpointError(
                    "the delta ends inside a tensor or file",
                    where=self._where,
                    expected=f"{count - done} more bytes",
                    found=0,
                    do="The file is damaged: copy or download it again",
                )
            done += got
        return taken

    def pieces(self, count: int) -> Iterator[Bytes]:
        """The next bytes, a piece at a time. Raises: CheckpointError."""
        for begin in range(0, count, PIECE_BYTES):
            yield self.take(min(PIECE_BYTES, count - begin))

    def end(self) -> None:
        """Refuse a piece that holds more than was taken. Raises: CheckpointError."""
        if self._read(np.empty(1, np.uint8)):
            raise CheckpointError(
                "the delta holds more than the tensor or file needs",
                where=self._where,
                do="The file is damaged: copy or download it again",
            )

    def _read(self, room: Bytes) -> int:
        try:
            return int(self._stream.readinto(room.data))
        except self._damage as error:
            raise CheckpointError(
                f"the delta cannot be decompressed: {error}",
                where=self._where,
                do="The file is damaged: copy or download it again",
            ) from error


def compressed(pieces: Sequence[bytes] | Iterator[bytes]) -> Iterator[bytes]:
    """One frame of everything, a piece at a time."""
    import zstandard

    is_sequence = isinstance(pieces, Sequence)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL,
        source_size=sum(map(len, pieces)) if is_sequence else 0,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=0,
    )
    coder = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    for piece in pieces:
        yield coder.compress(piece)
    yield coder.flush()
