"""Every family refuses a wrong configuration in one line that names the key; found from its file.

In: for each family the first of its tiny models, with one key changed at a time. Out: a
CheckpointError; or, where a missing key or null has a meaning, a Plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tiny_models import EVERY

from crumb.architectures.family import Family
from crumb.architectures.registry import families, plan_of
from crumb.errors import CheckpointError

Case = tuple[str, dict[str, Any]]

NO_NUMBERS: tuple[Any, ...] = ("8", -1, True, [], {}, float("nan"), 10.0**30)
NO_FLAGS: tuple[Any, ...] = ("true", 1, None, [])
ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "spiral"},
    {"rope_type": ["linear"]},
    {"type": "dynamic", "factor": 2.0},
    {"rope_type": "linear"},
    {"rope_type": "linear", "factor": 0},
    {"rope_type": "llama3", "factor": 8.0},
    {"rope_type": "yarn", "factor": "8"},
)
DERIVED = ("key_value_heads", "head_dim", "feed_forward")
"""Words that follow from others where a family has no default of its own."""

OTHER = ("rope", "activation", "dense_blocks", "sparse_blocks", "attending")
"""Words that are no numbers."""

NEGATIVE = ("halved_every",)
"""Words that may be below 0: never."""


FIRST = {"falcon": "falcon-new", "deepseek_v2": "deepseek_v2-groups"}
"""Where another than a family's first tiny model reads all its keys."""


def base(family: Family) -> dict[str, Any]:
    """A tiny model of the family."""
    of_family = (name for name, each in EVERY.items() if each["model_type"] == family.model_type)
    return dict(EVERY[FIRST.get(family.model_type) or next(of_family)])


def keys(family: Family, word: str) -> tuple[str, ...]:
    named = family.keys[word]
    return (named,) if isinstance(named, str) else named


def spelled(family: Family, word: str, value: Any) -> dict[str, Any]:
    """The base with one word under the first of its keys, and under no other."""
    first, *others = keys(family, word)
    return {key: each for key, each in base(family).items() if key not in others} | {first: value}


def wrong_words(family: Family) -> Iterator[Case]:
    """Values that a word cannot have."""
    for word in family.keys:
        for value in () if word in OTHER else NO_NUMBERS:
            if value != -1 or word not in NEGATIVE:
                yield keys(family, word)[0], spelled(family, word, value)


def refusal(configuration: dict[str, Any]) -> str:
    """The error for a configuration; empty where it has a Plan."""
    try:
        plan_of(configuration)
    except CheckpointError as error:
        return str(error)
    return ""


def refused(case: Case) -> str | None:
    """What is wrong with how a configuration was refused; None if nothing."""
    key, configuration = case
    told = refusal(configuration)
    if not told:
        return f"{key} = {configuration.get(key, 'missing')!r} was taken"
    return None if key in told and "\n" not in told and len(told) < 400 else told


def complaints(cases: Iterator[Case]) -> list[str]:
    return [told for case in cases if (told := refused(case)) is not None]


every_family = pytest.mark.parametrize("model_type", families())


@every_family
def test_the_base_is_right(model_type: str) -> None:
    assert plan_of(base(families()[model_type])).stages


@every_family
def test_what_is_no_number_is_refused_by_its_key(model_type: str) -> None:
    assert complaints(wrong_words(families()[model_type])) == []


@every_family
def test_a_missing_key_has_a_default_or_is_refused_by_its_name(model_type: str) -> None:
    family = families()[model_type]
    for word in family.keys:
        names = keys(family, word)
        left = {key: value for key, value in base(family).items() if key not in names}
        if word not in family.defaults and word not in (*DERIVED, *OTHER):
            assert refused((names[0], left)) is None
            continue
        told = refusal(left)  # the default may be that of a larger model
        assert "\n" not in told
        assert not told or "config.json: " in told


@every_family
def test_null_has_a_meaning_or_is_refused_by_its_key(model_type: str) -> None:
    family = families()[model_type]
    for word in family.keys:
        case = keys(family, word)[0], spelled(family, word, None)
        told = refusal(case[1])
        assert not told or refused(case) is None or "features to rotate" in told


@every_family
def test_ropes_that_nobody_knows_are_refused(model_type: str) -> None:
    family = families()[model_type]
    for rope in ROPES if "rope" in family.keys else ():
        told = refusal(spelled(family, "rope", rope))
        assert "config.json: " in told, rope
        assert "\n" not in told
        assert len(told) < 400


@every_family
def test_an_activation_that_nobody_knows_is_refused_by_its_key(model_type: str) -> None:
    family = families()[model_type]
    words = ("quick_gelu", 3, ["silu"], {})
    cases = ((keys(family, "activation")[0], spelled(family, "activation", x)) for x in words)
    assert complaints(cases if "activation" in family.keys else iter(())) == []


COMMON: tuple[tuple[str, Any], ...] = (
    ("tie_word_embeddings", "yes"),
    ("tie_word_embeddings", None),
    ("layer_types", 3),
    ("layer_types", ["full_attention"]),
    ("layer_types", ["some_attention"] * 3),
    ("sliding_window", "13"),
    ("sliding_window", -1),
    ("use_sliding_window", 1),
    ("rope_scaling", 7),
    ("norm_topk_prob", "no"),
    ("mlp_bias", "no"),
)
"""Keys that some families read and others do not."""


@every_family
def test_a_wrong_value_of_a_common_key_is_refused_by_its_name_or_not_read(model_type: str) -> None:
    family = families()[model_type]
    usual = base(family)
    if usual["model_type"].startswith("qwen2"):
        usual["use_sliding_window"] = True  # else its window is not read
    for key, value in COMMON:
        told = refusal(usual | {key: value})
        if not told:
            assert plan_of(usual | {key: value}) == plan_of(usual), (key, value)
            continue
        assert f"config.json: {key}" in told
        assert "\n" not in told


@every_family
def test_a_flag_is_true_or_false(model_type: str) -> None:
    family = families()[model_type]
    made = family.restate(base(family)).keys() - base(family)
    for flag in (*family.biases.values(), *family.optional.values()):
        if isinstance(flag, str) and flag not in made:
            cases = ((flag, base(family) | {flag: value}) for value in NO_FLAGS)
            assert complaints(cases) == []


@every_family
def test_heads_and_experts_that_do_not_divide_are_refused(model_type: str) -> None:
    family = families()[model_type]
    wide = "rank" in family.keys or family.encoder is not None  # its heads are as wide as it says
    fixed = wide or "head_dim" in base(family) or "heads" not in family.keys
    wrong = [] if fixed else [spelled(family, "heads", 11)]
    if "key_value_heads" in family.keys:
        wrong.append(spelled(family, "key_value_heads", 1000))
    if "experts" in family.keys:
        wrong.append(spelled(family, "used", 1000))
        wrong.append(spelled(family, "experts", 1))
    if "groups" in family.keys:
        wrong.append(spelled(family, "groups", 7))
    for configuration in wrong:
        with pytest.raises(CheckpointError) as caught:
            plan_of(configuration)
        assert "\n" not in str(caught.value)
