"""Expectations of quality: through the measured points, and monotone between and beyond them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumb.fitting.expected_quality import MEASURED, expected_bits_per_byte, expected_kl

sizes = st.floats(1e6, 1e12)
widths = st.floats(1.5, 9.0)


@pytest.mark.parametrize("measured", MEASURED, ids=lambda each: each.model)
def test_a_measured_model_is_expected_to_be_what_it_was(measured) -> None:  # type: ignore[no-untyped-def]
    for codes, points in measured.points.items():
        for bits, kl in points:
            assert expected_kl(measured.parameters, bits, codes).value == pytest.approx(kl)


@given(sizes, widths, widths, st.sampled_from(["int", "super", "lut"]))
def test_more_bits_are_never_expected_to_be_worse(
    size: float, one: float, other: float, codes: str
) -> None:
    low, high = sorted((one, other))
    more, fewer = (expected_kl(size, bits, codes).value for bits in (high, low))
    assert more <= fewer * (1 + 1e-9)


@given(sizes, st.floats(2.21, 4.25))
def test_super_blocks_are_never_expected_to_be_worse_than_whole_numbers(
    size: float, bits: float
) -> None:
    assert expected_kl(size, bits, "super").value <= expected_kl(size, bits).value * (1 + 1e-9)


@given(sizes, sizes)
def test_larger_models_are_never_expected_to_be_worse(one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert expected_bits_per_byte(large).value <= expected_bits_per_byte(small).value + 1e-9


def test_an_expectation_names_whose_measurements_it_comes_from() -> None:
    assert expected_kl(1e9, 4.25).of == "SmolLM2-135M and Llama-3-8B"
    assert "LLaMA" in expected_bits_per_byte(1e9).of
