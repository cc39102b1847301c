"""An activation and the product behind it become a Gate only where that changes nothing.

In: stages of two to four operations and places of their buffers. Out: the operations that run.
That a Gate's bits are those of its two operations is checked natively (check_rows.cpp) and by the
families' runs against the array executor.
"""

from __future__ import annotations

from crumb.architectures.plan import Stage
from crumb.operations.activation import Activation
from crumb.operations.add import Add
from crumb.operations.multiply import Multiply
from crumb.operations.operation import Operation
from crumb.run.buffers import Place
from crumb.run.gates import Gate, with_gates

GATE, UP, INNER = Place(0, 64, 4), Place(256, 64, 4), Place(512, 64, 4)
PLACES = {"gate": GATE, "up": UP, "inner": INNER, "active": Place(768, 64, 4)}

ACTIVATION = Activation("gate", "active", "silu")
PRODUCT = Multiply("active", "up", "inner")


def gated(
    *operations: Operation, outputs: tuple[str, ...] = ("inner",), **places: Place
) -> list[Operation]:
    stage = Stage("block", operations, ("gate", "up"), outputs)
    return list(with_gates(stage, PLACES | places))


def test_a_pair_is_one_pass() -> None:
    assert gated(ACTIVATION, PRODUCT) == [Gate("gate", "up", "inner", "silu")]
    assert gated(ACTIVATION, Multiply("up", "active", "inner")) == [
        Gate("gate", "up", "inner", "silu")
    ]


def test_in_place_is_one_pass() -> None:
    assert gated(ACTIVATION, PRODUCT, inner=GATE) == [Gate("gate", "up", "inner", "silu")]


def test_an_output_that_overlaps_the_input_elsewhere_stays_two() -> None:
    assert gated(ACTIVATION, PRODUCT, inner=Place(128, 64, 4)) == [ACTIVATION, PRODUCT]


def test_an_activation_that_others_read_stays() -> None:
    assert gated(ACTIVATION, PRODUCT, outputs=("inner", "active")) == [ACTIVATION, PRODUCT]
    later = Add("inner", "active", "inner")
    assert gated(ACTIVATION, PRODUCT, later) == [ACTIVATION, PRODUCT, later]


def test_a_square_stays_two() -> None:
    square = Multiply("active", "active", "inner")
    assert gated(ACTIVATION, square) == [ACTIVATION, square]


def test_an_activation_alone_stays() -> None:
    assert gated(ACTIVATION, outputs=("active",)) == [ACTIVATION]
    added = Add("active", "up", "inner")
    assert gated(ACTIVATION, added) == [ACTIVATION, added]
