"""Strips of a matrix on their way into a GGUF type: what is decoded, and what the report counts.

In: codes of a format, handed over in strips. Out: bytes, and the change of the whole matrix.
"""

from __future__ import annotations

import numpy as np
import pytest
from random_matrices import random_matrix

from crumb.checkpoints.gguf import tensor_types
from crumb.checkpoints.gguf.tensor_types import Change, choose_type, encode_rows
from crumb.checkpoints.tensor_map import Matrix, StoredCodes
from crumb.errors import UsageError
from crumb.formats.catalog import Format, ZeroKind, make_format
from crumb.formats.grid import decode_reference, take_rows
from crumb.formats.layouts.gguf_blocks import decode_floats

ROWS, COLUMNS = 8, 256


def entry_of(format: Format, matrix: Matrix) -> StoredCodes:
    codes, parameters = matrix
    return StoredCodes(
        format, (ROWS, COLUMNS), 0, "", lambda rows: (codes[rows], take_rows(parameters, rows))
    )


@pytest.mark.parametrize(("bits", "name"), [(4, "Q4_0"), (3, "Q4_0"), (6, "Q8_0")])
def test_a_type_that_holds_the_format_is_written_without_decoding(
    bits: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    format = make_format(bits, 32, ZeroKind.FIXED)
    matrix = random_matrix(format, ROWS, COLUMNS)
    expected = decode_reference(*matrix, format)
    monkeypatch.delattr(tensor_types, "decode_reference")
    entry, change = entry_of(format, matrix), Change()
    raw = encode_rows(entry, name, slice(0, ROWS), change)
    np.testing.assert_array_equal(decode_floats(name, raw, COLUMNS), expected)
    report = change.report("matrix", entry, name)
    assert (report.exact, report.change, report.note) == (True, 0, "")


def test_rows_that_happen_to_be_kept_count_in_the_share_of_the_matrix() -> None:
    format = make_format(6, 32, ZeroKind.FIXED)
    codes, parameters = random_matrix(format, ROWS, COLUMNS)
    parameters.scale[:4] = 0.5  # one scale for all groups is on any grid
    entry, change = entry_of(format, (codes, parameters)), Change()
    raw = [encode_rows(entry, "Q6_K", slice(at, at + 4), change) for at in (0, 4)]
    before = decode_reference(codes, parameters, format).astype(np.float64)
    after = decode_floats("Q6_K", np.concatenate(raw), COLUMNS)
    assert (after[:4] == before[:4]).all()
    report = change.report("matrix", entry, "Q6_K")
    # Both sum the squares of the same f32 differences, or of ones rounded once to f32.
    expected = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert report.change == pytest.approx(expected, rel=2.0**-23)
    assert report.note == "codes kept, scales rounded"


def test_a_type_may_be_named_in_either_case() -> None:
    format = make_format(4, 32, ZeroKind.FIXED)
    entry = entry_of(format, random_matrix(format, ROWS, COLUMNS))
    assert choose_type(entry, "q5_k") == choose_type(entry, "Q5_K") == "Q5_K"
    with pytest.raises(UsageError, match=r"no such GGUF type.*found q9_z"):
        choose_type(entry, "q9_z")
