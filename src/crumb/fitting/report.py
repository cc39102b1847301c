"""What a fit says: one row for each file that a model is or could be, the best row, advice.

In: nothing. Out: frozen records, which print as JSON as they are. Bytes, seconds and nats.
"""

from __future__ import annotations

from dataclasses import dataclass

from crumb.run.memory_plan import MemoryPlan


@dataclass(frozen=True)
class Quality:
    """What a row costs in quality."""

    kl: float  # nats, mean, from the float model
    measured: bool  # of this very file; else expected
    of: str  # the text it was measured on, or the models that it is expected from


@dataclass(frozen=True)
class FitRow:
    """One file."""

    format: str  # of the blocks, or the file's name where a repository has several
    lies_here: bool  # the file itself, not what it could become
    file_bytes: int
    bits_per_weight: float  # of the whole file
    memory: MemoryPlan
    memory_bytes: int  # all of it
    fits: bool
    prompt_tokens_per_second: float | None  # of a prompt that fills half of the context
    decode_tokens_per_second: float | None  # of all sequences together, behind such a prompt
    quality: Quality | None  # none of a file of floats


@dataclass(frozen=True)
class ModelFit:
    """One model."""

    model: str
    family: str
    parameters: int
    context_tokens: int
    parallel: int
    cache: str
    rows: tuple[FitRow, ...]  # the largest first
    best: int | None  # index of the row to take; None where nothing fits
    bits_per_byte: float | None  # of the best row, on English text
    bits_per_byte_measured: bool  # of this very file; else expected
    bits_per_byte_of: str  # the text, or whose measurements it is expected from
    advice: tuple[str, ...]

    @property
    def best_row(self) -> FitRow | None:
        return None if self.best is None else self.rows[self.best]


@dataclass(frozen=True)
class FitReport:
    """Models, the best first."""

    memory_bytes: int  # that was asked about
    memory_of: str  # who says so: the request, the machine, or a control group
    available_bytes: int  # what this process may really take now
    models: tuple[ModelFit, ...]
    failures: tuple[str, ...] = ()  # models that could not be opened, and why

    @property
    def fits(self) -> bool:
        return any(model.best is not None for model in self.models)
