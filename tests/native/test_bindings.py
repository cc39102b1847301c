"""The native module's boundary: wrong shapes, types, orders and settings raise, and never crash."""

import ast
from pathlib import Path

import numpy as np
import pytest

import crumb
from crumb import _native


def floats(*shape):
    return np.ones(shape, np.float32)


def codes(*shape):
    return np.zeros(shape, np.uint8)


VALID = {
    # 3 rows of 40 codes: 2 groups of 32 a row; at 8 bits one code more or less is one byte
    "pack": {"codes": codes(3, 40), "packed": codes(3, 40), "bits": 8},
    "unpack": {"packed": codes(3, 40), "codes": codes(3, 40), "bits": 8},
    # 20 rows are 2 tiles; 40 inputs are groups of 32 and 8, a chunk each; 3 bits: 192 bytes
    "pack_tiles": {
        "codes": codes(20, 40),
        "headers": codes(2, 96),
        "tiles": codes(2, 480),
        "block_width": 32,
        "last_header_bytes": 48,
        "bits": 3,
    },
    "unpack_tiles": {
        "tiles": codes(2, 480),
        "codes": codes(20, 40),
        "headers": codes(2, 96),
        "block_width": 32,
        "last_header_bytes": 48,
        "bits": 3,
    },
    "decode_tiles": {
        "tiles": codes(2, 576),
        "table": np.zeros(16, np.int8),
        "weights": floats(20, 40),
        "group_width": 32,
        "bits": 4,
        "zero": 0,
        "sub": 0,
    },
    "sweep": {
        "isa": "baseline",
        "start": floats(3, 4),
        "weights": floats(3, 4),
        "factor": floats(4, 4),
        "scale": floats(3, 2),
        "offset": floats(3, 2),
        "group": np.array([0, 0, 1, 1], np.int32),
        "codes": codes(3, 4),
        "error": floats(3, 4),
        "largest_code": 7,
        "zero": 0,
        "rounding": True,
        "levels": np.array([-3, -1, 1, 4], np.float32),
    },
    "grid_search": {
        "isa": "baseline",
        "weights": floats(3, 40),
        "importance": floats(40),
        "shrinks": floats(2),
        "scale": floats(3, 2),
        "offset": floats(3, 2),
        "group_width": 32,
        "bits": 8,
        "zero": 0,
        "levels": np.array([-3, -1, 1, 4], np.float32),
    },
}
ARRAYS = [
    (kernel, name)
    for kernel, arguments in VALID.items()
    for name, value in arguments.items()
    if isinstance(value, np.ndarray)
]
ANY_LENGTH = (("grid_search", "shrinks"), ("grid_search", "levels"), ("sweep", "levels"))
TILE_KERNELS = ("pack_tiles", "unpack_tiles", "decode_tiles")
STEPS = {
    ("pack_tiles", "codes", 0): 16,
    ("pack_tiles", "codes", 1): 32,
    ("unpack_tiles", "codes", 0): 16,
    ("unpack_tiles", "codes", 1): 32,
    ("decode_tiles", "weights", 0): 16,
    ("decode_tiles", "weights", 1): 32,
}
"""Rows or inputs that tiles are padded to: fewer more or less have tiles of the same shape."""
MAY_BE_EMPTY = ("decode_tiles", "table")


def call(kernel, **changes):
    getattr(_native, kernel)(**(VALID[kernel] | changes))


@pytest.mark.parametrize("kernel", VALID)
def test_the_valid_arguments_of_these_tests_are_accepted(kernel):
    call(kernel)


@pytest.mark.parametrize(("kernel", "name"), [pair for pair in ARRAYS if pair not in ANY_LENGTH])
def test_a_wrong_shape_is_a_value_error(kernel, name):
    array = VALID[kernel][name]
    for axis in range(array.ndim):
        step = range(STEPS.get((kernel, name, axis), 1))
        wrongs = [
            np.concatenate([array, array.take(step, axis)], axis),
            np.ascontiguousarray(np.delete(array, step, axis)),
        ]
        if (kernel, name) != MAY_BE_EMPTY:
            wrongs.append(np.ascontiguousarray(array.take([], axis)))
        for wrong in wrongs:
            with pytest.raises(ValueError, match=r"wrong shape|out of range"):
                call(kernel, **{name: wrong})


@pytest.mark.parametrize(("kernel", "name"), ARRAYS)
def test_another_dtype_rank_or_memory_order_is_a_type_error(kernel, name):
    # An array that nanobind converts would take the results and be thrown away.
    array = VALID[kernel][name]
    wrongs = [
        array.astype(np.float64),
        array.astype(np.int64),
        array[None],
        array.repeat(2, 0)[::2],
    ]
    if array.ndim == 2:
        wrongs.append(np.asfortranarray(array))
    for wrong in wrongs:
        with pytest.raises(TypeError, match="incompatible function arguments"):
            call(kernel, **{name: wrong})


BAD_LEVELS = [np.arange(17, dtype=np.float32), np.array([1, 1, 2, 3], np.float32)]
"""Too many, and not ascending."""

OUTPUTS = [
    ("pack", "packed"),
    ("unpack", "codes"),
    ("pack_tiles", "tiles"),
    ("unpack_tiles", "codes"),
    ("unpack_tiles", "headers"),
    ("decode_tiles", "weights"),
    ("sweep", "codes"),
    ("sweep", "error"),
    ("grid_search", "scale"),
    ("grid_search", "offset"),
]


@pytest.mark.parametrize(("kernel", "name"), OUTPUTS)
def test_a_read_only_output_is_a_type_error(kernel, name):
    frozen = VALID[kernel][name].copy()
    frozen.flags.writeable = False
    with pytest.raises(TypeError, match="incompatible function arguments"):
        call(kernel, **{name: frozen})


@pytest.mark.parametrize(("kernel", "name"), [pair for pair in ARRAYS if pair not in OUTPUTS])
def test_a_read_only_input_is_accepted(kernel, name):
    frozen = VALID[kernel][name].copy()
    frozen.flags.writeable = False
    call(kernel, **{name: frozen})


@pytest.mark.parametrize(
    ("kernel", "name", "value"),
    [
        *((kernel, "bits", bits) for kernel in VALID if kernel != "sweep" for bits in (-1, 0, 9)),
        *((kernel, "bits", bits) for kernel in TILE_KERNELS for bits in (1, 7)),
        *(("decode_tiles", name, kind) for name in ("zero", "sub") for kind in (-1, 5)),
        *((kernel, "last_header_bytes", n) for kernel in TILE_KERNELS[:2] for n in (-1, 49)),
        *(
            (kernel, "group_width", n)
            for kernel in ("decode_tiles", "grid_search")
            for n in (-32, 0)
        ),
        *(
            (kernel, "block_width", n)
            for kernel in ("pack_tiles", "unpack_tiles")
            for n in (-32, 0)
        ),
        *((kernel, "isa", "sse9") for kernel in ("sweep", "grid_search")),
        *((kernel, "levels", bad) for kernel in ("sweep", "grid_search") for bad in BAD_LEVELS),
        ("sweep", "group", np.array([0, 0, 1, 2], np.int32)),
        ("sweep", "group", np.array([0, 0, 1, -1], np.int32)),
    ],
)
def test_a_setting_that_cannot_be_is_a_value_error(kernel, name, value):
    with pytest.raises(ValueError, match=r"must|not supported here|out of range|at most"):
        call(kernel, **{name: value})


@pytest.mark.parametrize(
    ("sub", "group_width", "columns"),
    [(1, 64, 256), (2, 8, 256), (1, 32, 40), (1, 16, 264), (3, 16, 256), (4, 16, 256)],
)
def test_a_super_block_has_256_inputs_in_groups_of_16_or_32(sub, group_width, columns):
    changes = {"weights": floats(20, columns), "sub": sub, "group_width": group_width}
    with pytest.raises(ValueError, match="super-blocks"):
        call("decode_tiles", **changes)


ONE_GROUP = {
    "decode_tiles": {"tiles": codes(2, 32 + 2 * 256)},
    "grid_search": {"scale": floats(3, 1), "offset": floats(3, 1)},
}


@pytest.mark.parametrize("kernel", ONE_GROUP)
@pytest.mark.parametrize("group_width", [41, 2**58, 2**63 - 1])
def test_a_group_wider_than_the_row_is_the_row(kernel, group_width):
    names = [name for owner, name in OUTPUTS if owner == kernel]
    one_group = ONE_GROUP[kernel]
    results = []
    for width in (40, group_width):
        arrays = {name: (VALID[kernel] | one_group)[name].copy() for name in names}
        call(kernel, **(one_group | arrays | {"group_width": width}))
        results.append([array.tobytes() for array in arrays.values()])
    assert results[0] == results[1]


@pytest.mark.parametrize("zero", [1, 2])
def test_a_table_has_a_fixed_zero(zero):
    header_bytes = {1: 48, 2: 64}[zero]
    with pytest.raises(ValueError, match="zero must be fixed"):
        call("decode_tiles", zero=zero, tiles=codes(2, 2 * (header_bytes + 256)))


@pytest.mark.parametrize(("kernel", "rows"), [("sweep", 0), ("grid_search", 0)])
def test_no_rows_is_no_work(kernel, rows):
    empty = {
        name: np.ascontiguousarray(value[:rows])
        for name, value in VALID[kernel].items()
        if isinstance(value, np.ndarray) and value.shape[0] == 3
    }
    call(kernel, **empty)


def test_the_stub_names_every_function_and_argument():
    stub = ast.parse((Path(crumb.__file__).parent / "_native.pyi").read_text())
    written = {
        node.name: [argument.arg for argument in node.args.args]
        for node in stub.body
        if isinstance(node, ast.FunctionDef)
    }
    others = {
        node.name: [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
        for node in stub.body
        if isinstance(node, ast.ClassDef)
    }
    constants = {
        node.target.id
        for node in stub.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    public = {name for name in dir(_native) if not name.startswith("_")}
    assert written.keys() | others.keys() | constants == public
    for name, methods in others.items():
        found = {each for each in dir(getattr(_native, name)) if not each.startswith("_")}
        assert set(methods) - {"__init__"} == found
    assert {name: written[name] for name in VALID} == {
        name: list(arguments) for name, arguments in VALID.items()
    }
