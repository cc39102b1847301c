"""Patterns of module names: the same answers as Python's own regular expressions, in bounded time.

In: patterns as quantization settings have them, hostile ones, and random ones. Out: the first rule
that matches from the start of a name.
"""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumb.checkpoints.gptq.module_patterns import Rules, literal_name
from crumb.errors import CheckpointError

NAMES = [
    "model.layers.1.mlp.down_proj",
    "model.layers.18.self_attn.q_proj",
    "model.layers.1.mlp.gate-proj",
    "lm_head",
    "",
]
PATTERNS = [
    "lm_head",
    r".*\.18\..*q_proj",
    r"model\.layers\.(1|2)\.mlp\.(?:down|up)_proj$",
    r"^model\.layers\.(?!18\.)\d+\.",
    r"model\.layers\.(?=18)",
    r"[a-z_.]+\.[0-9]{2}\.",
    r"[^.]+\.[\w]+\.\d{1,3}?\.[^x-z]*_proj$",
    r".*gate[-_]proj",
    r"(?:l.*)*head$",
    r"\S+\D\W\w$",
    r"a|lm|b",
    r"",
    r"(|x)lm_?head$",
    r"x{0}lm_head{1}$",
    r"lm_hea[]d]$",
    r"(lm_){1,}head",
    r"[\.\d]*model",
]


def matches(pattern: str, name: str) -> bool:
    """Whether one rule of this pattern applies."""
    return Rules.of([(pattern, True)], "here").find(name) is True


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_what_regular_expressions_match(pattern: str) -> None:
    for name in NAMES:
        assert matches(pattern, name) == (re.match(pattern, name) is not None), name


PIECES = st.sampled_from(
    ["a", "b", ".", r"\.", "[ab]", "[^a]", "(?:a|b)", "(a)", "(?=a)", "(?!b)", "^", "$", "|"]
)
COUNTS = st.sampled_from(["", "", "", "*", "+", "?", "*?", "{2}", "{1,}", "{,2}", "{1,3}"])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(PIECES, COUNTS), max_size=6),
    st.text("ab.", max_size=8),
)
def test_random_patterns_match_what_regular_expressions_match(
    parts: list[tuple[str, str]], name: str
) -> None:
    countless = ("^", "$", "|", "(?=a)", "(?!b)")
    pattern = "".join(piece + ("" if piece in countless else count) for piece, count in parts)
    assert matches(pattern, name) == (re.match(pattern, name) is not None), (pattern, name)


def test_the_first_rule_that_matches_decides() -> None:
    rules = Rules.of([(r"a\.b$", 1), ("a.*", 2), (r"a\.c$", 3), (".*", 4)], "here")
    assert [rules.find(name) for name in ("a.b", "a.c", "a.b.d", "c")] == [1, 2, 2, 4]
    assert Rules.of([(r"a\.b$", 1)], "here").find("a.bc") is None


def test_a_pattern_of_one_name_is_looked_up() -> None:
    assert literal_name(r"model\.layers\.1\.up_proj$") == "model.layers.1.up_proj"
    assert literal_name(r"^a\-b$") == "a-b"
    for pattern in ("a.b$", "ab", r"\d$", r"a\$", "(a)$", "a+$", "[a]$", "$$"):
        assert literal_name(pattern) is None, pattern


def test_thousands_of_names_are_found_at_once() -> None:
    names = [f"model.layers.{place}.mlp.up_proj" for place in range(5000)]
    rules = Rules.of([(re.escape(name) + "$", name) for name in names], "here")
    assert all(rules.find(name) == name for name in names)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|a)*$", "(.*)*x", ".*" * 20 + "x", "(a?){30}a{30}$", "((a{1,9}){1,9}){1,9}$"],
)
def test_patterns_that_explode_elsewhere_are_quick_here(pattern: str) -> None:
    began = time.perf_counter()
    for length in (30, 400):
        matches(pattern, "a" * length + "b")
    # Backtracking takes years for some of these; the slowest here takes milliseconds.
    assert time.perf_counter() - began < 5


def test_a_budget_of_steps_ends_what_is_still_slow() -> None:
    """Lookahead in lookahead, each tried from every place."""
    pattern = "(?=.*" * 5 + "x" + ")" * 5
    with pytest.raises(CheckpointError, match="at most 1000000 steps"):
        matches(pattern, "a" * 500)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a",
        "a)",
        "[a",
        "a**",
        "*a",
        "(?P<x>a)",
        "(?<=a)b",
        r"\1",
        r"\b",
        "\\",
        "a{2000}",
        "a{3,1}",
        "[z-a]",
        "(" * 30 + ")" * 30,
        "a" * 2000,
        "a{2}{3}",
    ],
)
def test_syntax_beyond_the_needed_is_refused(pattern: str) -> None:
    with pytest.raises(CheckpointError, match=r"here: a pattern.*found '"):
        Rules.of([(pattern, 1)], "here")


def test_a_name_without_end_is_refused_where_it_would_be_matched() -> None:
    with pytest.raises(CheckpointError, match="names of at most"):
        matches("a.*", "a" * 501)
    assert not matches("a$", "a" * 501)
