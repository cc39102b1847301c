"""What may be asked of a fit: amounts of memory in every spelling, and what is refused."""

from __future__ import annotations

import pytest

from crumb.errors import UsageError
from crumb.requests.fit_request import make_fit_request, parse_bytes


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("8GiB", 8 * 2**30),
        ("6.5 GB", 6_500_000_000),
        ("6.5g", 6_500_000_000),
        ("512MiB", 2**29),
        ("100mb", 100_000_000),
        ("1TiB", 2**40),
        ("4000", 4000),
        (4000, 4000),
        (".5kB", 500),
    ],
)
def test_an_amount_is_read_in_every_spelling(word: int | str, count: int) -> None:
    assert parse_bytes(word, "memory") == count


@pytest.mark.parametrize("word", ["", "GB", "8 GBs", "-1GB", "0", "1e9", "eight", True, 0, 2.5])
def test_what_is_no_amount_is_refused(word: int | str) -> None:
    with pytest.raises(UsageError, match="not an amount of memory"):
        parse_bytes(word, "memory")


def test_counts_out_of_range_and_unknown_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="parallel"):
        make_fit_request(("a",), parallel=0)
    with pytest.raises(UsageError, match="context_tokens"):
        make_fit_request(("a",), context_tokens=True)
    with pytest.raises(UsageError, match=r"parallels.*Did you mean parallel"):
        make_fit_request(("a",), parallels=2)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="no model"):
        make_fit_request(())
