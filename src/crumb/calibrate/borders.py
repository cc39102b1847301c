"""What flows between a model's stages over all calibration tokens, and its gradients, in files.

In: a Plan, parts of the texts or pairs, a folder. Out: a file for each buffer that flows out of a
stage, and one for the loss's gradient at it, as it flows into a stage. A buffer that several stages
read has their gradients added, from the last reader on.
A file has a row for each token and is there whole or not at all. Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan
from crumb.calibrate.walk import batches_of
from crumb.operations.operation import Array
from crumb.run.model import start_buffers
from crumb.run.whole_texts import Batch
from crumb.texts.pairs import PairTokens

Tokens = NDArray[np.int64]
Floats = NDArray[np.float32]

DRAW_SEED = 0
"""Of the next tokens that are drawn from the model."""


@dataclass(frozen=True, eq=False)
class Portion:
    """Some texts that run together, and where their tokens lie among those of all."""

    number: int
    batch: Batch
    draws: Floats  # (texts, length) in [0, 1): which next token is drawn from the model
    written: slice
    read: slice  # of what an encoder reads

    def tokens(self, once: bool) -> Tokens:
        """Those of one half, (texts, length): what an encoder reads, or what is written."""
        half = self.batch.read if once else self.batch
        assert half is not None, "a stage that runs once reads a source"
        return half.tokens

    def rows(self, once: bool) -> slice:
        return self.read if once else self.written


def cut_parts(tokens: Tokens | PairTokens) -> list[Portion]:
    """Texts, or pairs, some at a time; in the order of the walk's batches."""
    parts: list[Portion] = []
    written, read = 0, 0
    random = np.random.default_rng(DRAW_SEED)
    for batch in batches_of(tokens):
        draws = random.random(batch.tokens.shape, np.float32)
        ends = written + batch.tokens.size, read + (batch.read.tokens.size if batch.read else 0)
        parts.append(
            Portion(len(parts), batch, draws, slice(written, ends[0]), slice(read, ends[1]))
        )
        written, read = ends
    return parts


class Borders:
    """The files of one pass."""

    def __init__(self, plan: Plan, parts: Sequence[Portion], folder: Path) -> None:
        self.stages, self.parts, self.folder = plan.stages, parts, folder
        self._sources = plan.inputs

    def token_count(self, once: bool) -> int:
        """Tokens of one half of all texts."""
        return int(self.parts[-1].rows(once).stop)

    def inputs(self, index: int) -> list[str]:
        """Buffers of earlier stages that a stage reads."""
        written = {name for stage in self.stages[:index] for name in stage.outputs}
        return [name for name in self.stages[index].inputs if name in written]

    def has_values(self, index: int) -> bool:
        """Whether what flows out of a stage is there."""
        return all(self._values(index, name).exists() for name in self.stages[index].outputs)

    def values(self, index: int, part: Portion) -> dict[str, Array]:
        """What flows into a stage, and the tokens. Shapes: (texts, length, features)."""
        once = self.stages[index].once
        buffers = dict.fromkeys(self._sources, part.tokens(once)) if once else {}
        buffers |= start_buffers(part.tokens(once))
        for name in self.inputs(index):
            writer = self._writer(index, name)
            buffers[name] = self._read(self._values(writer, name), part, self.is_read(index, name))
        return buffers

    def write_values(self, index: int, parts: Iterable[Mapping[str, Array]]) -> None:
        """Store what flows out of a stage, part by part."""
        stage = self.stages[index]
        paths = {name: self._values(index, name) for name in stage.outputs}
        self._write(paths, parts, dict.fromkeys(paths, stage.once))

    def gradients(self, index: int, part: Portion) -> dict[str, Array]:
        """Of the loss at what a stage writes. Shapes: (texts, length, features)."""
        stage, gradients = self.stages[index], dict[str, Array]()
        for name in stage.outputs:
            reader = self._reader(index, name)
            if reader is not None:
                gradients[name] = self._read(self._gradient(reader, name), part, stage.once)
        return gradients

    def write_gradients(self, index: int, parts: Iterable[Mapping[str, Array]]) -> None:
        """Store those at what a stage reads, and what later readers of the same have."""
        paths = {name: self._gradient(index, name) for name in self.inputs(index)}
        halves = {name: self.is_read(index, name) for name in paths}

        def added() -> Iterator[dict[str, Array]]:
            for part, own in zip(self.parts, parts, strict=True):
                yield {name: self._with_later(index, name, part, own) for name in paths}

        self._write(paths, added(), halves)

    def drop(self, index: int) -> None:
        """Remove what led to the gradients at a stage's inputs."""
        stage = self.stages[index]
        for name in {*stage.outputs, *self.inputs(index)}:
            reader = self._reader(index, name)
            if reader is not None:
                self._gradient(reader, name).unlink(missing_ok=True)
        for name in stage.outputs:
            self._values(index, name).unlink(missing_ok=True)

    def is_read(self, index: int, name: str) -> bool:
        """Whether a buffer that a stage reads has a row for each token of a source."""
        return self.stages[self._writer(index, name)].once

    def _with_later(self, index: int, name: str, part: Portion, own: Mapping[str, Array]) -> Array:
        once = self.is_read(index, name)
        if name not in own:  # nothing that counts reads it
            values = self._read(self._values(self._writer(index, name), name), part, once)
            total = np.zeros_like(values)
        else:
            total = own[name]
        later = None if name in self.stages[index].outputs else self._reader(index, name)
        if later is None:
            return total
        return total + self._read(self._gradient(later, name), part, once)

    def _writer(self, index: int, name: str) -> int:
        """The stage that wrote what a stage reads."""
        return max(place for place in range(index) if name in self.stages[place].outputs)

    def _reader(self, index: int, name: str) -> int | None:
        """The next stage that reads what a buffer holds behind a stage."""
        for place in range(index + 1, len(self.stages)):
            if name in self.stages[place].inputs:
                return place
            if name in self.stages[place].outputs:
                return None
        return None

    def _values(self, index: int, name: str) -> Path:
        """Of what flows out of a stage."""
        return self.folder / f"{index}.{name}.values.npy"

    def _gradient(self, index: int, name: str) -> Path:
        """Of the loss's gradient at what flows into a stage, from this stage on."""
        return self.folder / f"{index}.{name}.gradient.npy"

    def _read(self, path: Path, part: Portion, once: bool) -> Array:
        rows = np.array(np.load(path, mmap_mode="r")[part.rows(once)])
        return rows.reshape(*part.tokens(once).shape, rows.shape[-1])

    def _write(
        self,
        paths: Mapping[str, Path],
        parts: Iterable[Mapping[str, Array]],
        halves: Mapping[str, bool],
    ) -> None:
        """A file for each name, with the rows of all parts."""
        arrays: dict[str, Array] = {}
        beside = {name: path.with_name(f"{path.name}.tmp") for name, path in paths.items()}
        for part, values in zip(self.parts, parts, strict=True):
            for name, once in halves.items():
                rows = values[name].reshape(-1, values[name].shape[-1])
                if name not in arrays:
                    shape = (self.token_count(once), rows.shape[1])
                    arrays[name] = np.lib.format.open_memmap(beside[name], "w+", np.float32, shape)
                arrays[name][part.rows(once)] = rows
        for name, path in paths.items():
            beside[name].replace(path)
