"""An operation's record, and the row that says everything the house must know about its kind.

In: nothing. Out: Operation, TensorSpec, Row. A file of this folder defines one kind: its record,
its mathematics in the array API standard, and ROW; operations/table.py finds the files.
Nothing here knows a family, a file or the native module.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from array_api_compat import array_namespace, is_torch_array
from numpy.typing import NDArray

Array = Any
"""An array of any library that follows the standard: f32 (batch, tokens, features) in buffers."""

Kind = TypeVar("Kind", bound="Operation")


@dataclass(frozen=True)
class TensorSpec:
    """A tensor the plan needs, as the checkpoint must hold it."""

    name: str
    shape: tuple[int, ...]
    matrix: bool  # a linear layer or embedding: what quantization touches


@dataclass(frozen=True)
class Operation:
    """One step. Fields named in READS and WRITES hold buffer names."""

    READS: ClassVar[tuple[str, ...]] = ("input",)
    WRITES: ClassVar[tuple[str, ...]] = ("output",)

    def _names(self, roles: tuple[str, ...]) -> tuple[str, ...]:
        names: list[str] = []
        for role in roles:
            value = getattr(self, role)
            names.extend(value if isinstance(value, tuple) else () if value is None else (value,))
        return tuple(names)

    @property
    def reads(self) -> tuple[str, ...]:
        return self._names(self.READS)

    @property
    def writes(self) -> tuple[str, ...]:
        return self._names(self.WRITES)

    def renamed(self: Kind, names: Mapping[str, str]) -> Kind:
        """The same between other buffers: old name -> new name."""

        def new(value: Any) -> Any:
            return tuple(map(new, value)) if isinstance(value, tuple) else names.get(value, value)

        return replace(
            self, **{role: new(getattr(self, role)) for role in self.READS + self.WRITES}
        )

    @property
    def word(self) -> str:
        """Its kind in prints, in times and in the native engine."""
        return type(self).__name__.lower()

    def tensors(self) -> tuple[TensorSpec, ...]:
        return ()

    def __str__(self) -> str:
        hidden = {*self.READS, *self.WRITES}
        settings = (
            f"{setting.name}={getattr(self, setting.name)}"
            for setting in fields(self)
            if setting.name not in hidden
            and getattr(self, setting.name) != setting.default
            and getattr(self, setting.name) is not None
        )
        flow = f"{', '.join(self.writes)} <- {', '.join(self.reads)}"
        return f"{self.word:<10} {flow:<28} {' '.join(settings)}".rstrip()


def matmul(left: Array, right: Array) -> Array:
    """The product of matrices, or of stacks of them, by their own library."""
    return array_namespace(left, right).matmul(left, right)


@dataclass
class Context:
    """What the operations of a run share."""

    weights: Mapping[str, Array]
    states: dict[str, tuple[Array, ...]] | None = None  # slot -> arrays; None: nothing is kept
    rotations: dict[Any, tuple[Array, Array]] = field(default_factory=dict)
    trained: Collection[str] = ()  # tensors whose gradients a backward pass gives
    multiply: Callable[[Array, Array], Array] = matmul  # of matrices or stacks
    longest_tokens: int | None = None  # that a text may come to have; None: this is all of it


@dataclass(frozen=True)
class OperationCost:
    """What one token of an operation takes, for prediction and for estimates."""

    multiply_adds: float = 0.0  # of matrix products, attention included
    weights: float = 0.0  # of matrices, each read at most once a step
    parts: int = 1  # that the weights fall into, all of one size
    parts_used: int = 1  # by a token; others are not read

    def share_read(self, tokens: int) -> float:
        """Share of the weights that a step of so many tokens reads, parts being used equally."""
        return 1.0 - (1.0 - self.parts_used / self.parts) ** tokens


@dataclass(frozen=True)
class Grouped:
    """Memory of an operation that deals the rows of a step out to groups, `used` for a token."""

    groups: int
    used: int
    widths: tuple[tuple[str, int], ...]  # its own buffers, with a row for each use: name, width
    matrices: tuple[tuple[str, int], ...]  # that read such rows: weight, in_features


@dataclass(frozen=True)
class Needs:
    """Memory of the native engine beside buffers and weights."""

    cache_heads: int = 0  # key-value heads, each with pages of keys and values
    head_dim: int = 0
    value_dim: int | None = None  # None: as head_dim; 0: no values, the keys' features are mixed
    table: Any = None  # a Rope: cosines and sines of each position, shared by equal ones
    table_width: int = 0  # floats of it for each position
    grouped: Grouped | None = None
    state_floats: int = 0  # of a sequence, however long it is; whole rows


class NativeProgram(Protocol):
    """The native engine under construction, as run/program.py builds it."""

    def add(self, kind: str, **arguments: Any) -> None:
        """Append an operation of the native engine."""

    def buffer(self, name: str) -> int: ...
    def matrix(self, name: str, at_once: bool = True) -> int: ...
    def vector(self, name: str | None) -> NDArray[np.float32] | None: ...
    def turns(self, rope: Any) -> NDArray[np.float32]: ...
    def cache(self, operation: Any) -> Mapping[str, Any]: ...
    def state(self, operation: Any) -> Mapping[str, Any]: ...
    def linear(self, operation: Any) -> None: ...
    def grouping(self, operation: Any) -> Mapping[str, Any]: ...


Widths = Mapping[str, int]
Gradients = tuple[Array | None, ...]


Reference = Callable[[Any, tuple[Array, ...], Context], tuple[Array, ...]]
"""(operation, arrays it reads, context) -> arrays it writes; changes none of what it reads."""

Gradient = Callable[
    [Any, tuple[Array, ...], Gradients, Context], tuple[Gradients, dict[str, Array]]
]
"""(operation, arrays it read, gradients of what it wrote, context)
-> gradients of what it read, None where there is none, and those of context.trained."""


ROW_FLOATS = 16
"""Rows of buffers and of states are padded to a multiple of these."""


def padded_row(features: int) -> int:
    """Floats of a row of so many features."""
    return -(-features // ROW_FLOATS) * ROW_FLOATS


def same_width(operation: Operation, widths: Widths) -> tuple[int, ...]:
    """Of what writes as many features as it reads first."""
    return (widths[operation.reads[0]],)


@dataclass(frozen=True)
class Row:
    """One kind of operation."""

    record: type[Any]
    widths: Callable[[Any, Widths], tuple[int, ...]]
    """(operation, features of the buffers it reads) -> features of those it writes."""
    reference: Reference
    gradient: Gradient
    native: Callable[[Any, NativeProgram], None]
    """Appends the operation to a native engine."""
    cost: Callable[[Any, float], OperationCost] = lambda operation, past_tokens: OperationCost()
    """(operation, tokens before the one that is run) -> what a token costs."""
    needs: Callable[[Any], Needs] = lambda operation: Needs()
    functions: tuple[str, ...] = ()
    """What its field `function` may be."""


def as_numpy(array: Array) -> NDArray[Any]:
    """An array of any library and device as NumPy's."""
    return np.asarray(array.cpu() if is_torch_array(array) else array)
