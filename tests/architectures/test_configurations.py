"""Configurations: both spellings of every setting, and a clear refusal of what cannot be.

In: configurations of the tiny models with one thing changed, some drawn by hypothesis.
Only a CrumbError may come out of plan_of, and a Plan that comes out has usable numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_models import GPT_NEO, GPT_NEOX, GPTJ, LLAMA, LLAMA3, MISTRAL, QWEN2, VARIANTS, YARN

from crumb.architectures.configuration import repeat_kinds
from crumb.architectures.plan import Plan
from crumb.architectures.registry import families, plan_of
from crumb.errors import CheckpointError, CrumbError, UnknownFamily
from crumb.operations.attention import Attention
from crumb.operations.rope import Rope
from crumb.operations.rotary import Rotary

GONE = object()

HUGE = pytest.param(10**5000, id="5001 digits")
"""More digits than Python itself writes."""


def changed(configuration: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A configuration with some keys replaced, or taken out where the change is GONE."""
    merged = dict(configuration) | changes
    return {key: value for key, value in merged.items() if value is not GONE}


def ropes(plan: Plan) -> list[Rope]:
    return [
        operation.rope
        for stage in plan.stages
        for operation in stage.operations
        if isinstance(operation, Rotary)
    ]


def windows(plan: Plan) -> list[int | None]:
    return [
        operation.window
        for stage in plan.stages
        for operation in stage.operations
        if isinstance(operation, Attention)
    ]


PHI3_LONG = VARIANTS["phi3-long"]
YARN5 = YARN | {"rope_theta": 300.0}
SPELLINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "theta": (
        changed(LLAMA, rope_theta=77.0),
        changed(LLAMA, rope_theta=GONE, rope_parameters={"rope_theta": 77.0}),
    ),
    "linear": (
        changed(LLAMA, rope_scaling={"type": "linear", "factor": 2.0}),
        changed(
            LLAMA,
            rope_theta=GONE,
            rope_parameters={"rope_type": "linear", "factor": 2, "rope_theta": 300},
        ),
    ),
    "yarn": (
        changed(LLAMA, rope_scaling=YARN | {"finetuned": True, "attention_factor": None}),
        changed(LLAMA, rope_theta=GONE, rope_scaling=None, rope_parameters=YARN5),
    ),
    "yarn's factor from the lengths": (
        changed(LLAMA, rope_scaling=YARN),
        changed(LLAMA, rope_scaling=YARN | {"factor": None}),  # 160 positions from 40
    ),
    "the training's length outside": (
        changed(LLAMA, rope_scaling=LLAMA3),
        changed(
            LLAMA,
            original_max_position_embeddings=64,
            rope_scaling=LLAMA3 | {"original_max_position_embeddings": 32},
        ),
    ),
    "partial rotary": (
        changed(GPT_NEOX, rotary_pct=0.6, rotary_emb_base=77),
        changed(
            GPT_NEOX,
            rotary_pct=GONE,
            rotary_emb_base=GONE,
            rope_parameters={"partial_rotary_factor": 0.6, "rope_theta": 77},
        ),
    ),
    "longrope as it was first called": (
        changed(PHI3_LONG, rope_scaling=PHI3_LONG["rope_scaling"] | {"type": "su"}),
        PHI3_LONG,
    ),
    "windows by kind": (
        changed(QWEN2, max_window_layers=2),
        changed(QWEN2, layer_types=["full_attention", "full_attention", "sliding_attention"]),
    ),
    "kinds of attention": (
        changed(GPT_NEO, attention_types=[[["global", "local"], 1], [["local"], 1]]),
        changed(GPT_NEO, attention_types=GONE, attention_layers=["global", "local", "local"]),
    ),
}


@pytest.mark.parametrize("setting", SPELLINGS)
def test_two_spellings_of_a_setting_mean_the_same_plan(setting: str) -> None:
    one, other = SPELLINGS[setting]
    assert one != other
    assert str(plan_of(one)) == str(plan_of(other))
    assert plan_of(one) == plan_of(other)


def test_the_settings_reach_the_plan() -> None:
    assert {rope.theta for rope in ropes(plan_of(SPELLINGS["theta"][0]))} == {77.0}
    assert {rope.dimensions for rope in ropes(plan_of(SPELLINGS["partial rotary"][0]))} == {8}
    assert windows(plan_of(QWEN2)) == [None, 13, 13]
    assert windows(plan_of(changed(QWEN2, use_sliding_window=False))) == [None] * 3
    assert windows(plan_of(changed(MISTRAL, sliding_window=GONE))) == [4096] * 3
    assert windows(plan_of(changed(MISTRAL, sliding_window=None))) == [None] * 3
    assert windows(plan_of(GPT_NEO)) == [None, 9, 9]


def test_scalings_change_the_frequencies_as_their_sources_say() -> None:
    plain = Rope(8, 10000.0).frequencies()
    np.testing.assert_allclose(plain, [1.0, 0.1, 0.01, 0.001], rtol=1e-15)  # exact but for powers
    linear = Rope(8, 10000.0, (("factor", 4.0),), "linear")
    np.testing.assert_array_equal(linear.frequencies(), plain / 4)
    settings = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    settings["original_max_position_embeddings"] = 2 * math.pi * 20
    llama3 = Rope(8, 10000.0, tuple(sorted(settings.items())), "llama3").frequencies()
    # 20, 2, 0.2 and 0.02 turns in the training's length: kept, a third of the way, divided twice.
    expected = plain * [1.0, 1 / 3 + (2 / 3) / 8, 1 / 8, 1 / 8]
    np.testing.assert_allclose(llama3, expected, rtol=1e-15)
    settings |= {"high_freq_factor": 1.0}  # as Llama 4 has it: nothing lies between
    abrupt = Rope(8, 10000.0, tuple(sorted(settings.items())), "llama3").frequencies()
    np.testing.assert_allclose(abrupt, plain * [1.0, 1.0, 1 / 8, 1 / 8], rtol=1e-15)


SIZES = {
    "vocab_size": LLAMA,
    "hidden_size": LLAMA,
    "num_hidden_layers": LLAMA,
    "num_attention_heads": LLAMA,
    "num_key_value_heads": LLAMA,
    "head_dim": LLAMA,
    "intermediate_size": LLAMA,
    "max_position_embeddings": LLAMA,
    "n_embd": GPTJ,
    "n_inner": GPTJ,
    "rotary_dim": GPTJ,
    "window_size": GPT_NEO,
    "sliding_window": MISTRAL,
    "max_window_layers": QWEN2,
}


@pytest.mark.parametrize("value", [-1, True, 3.0, "8", 2**24 + 1, HUGE, math.nan, [4], {}])
@pytest.mark.parametrize("key", SIZES)
def test_a_size_that_is_none_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {key}: .*expected an integer"):
        plan_of(changed(SIZES[key], **{key: value}))


@pytest.mark.parametrize("key", [key for key in SIZES if key != "max_window_layers"])
def test_a_size_of_zero_is_refused(key: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {key}: .*from 1 to .*found 0"):
        plan_of(changed(SIZES[key], **{key: 0}))


NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


@pytest.mark.parametrize("key", [*NEEDED, "intermediate_size"])
def test_a_missing_size_is_refused_by_its_key(key: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: {key}: .*found no such key"):
        plan_of(changed(LLAMA, **{key: GONE}))


def test_a_depth_that_only_costs_memory_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"num_hidden_layers.*from 1 to 1024, found 1025"):
        plan_of(changed(LLAMA, num_hidden_layers=1025))


def scaled(configuration: Mapping[str, Any], **scaling: Any) -> dict[str, Any]:
    return changed(configuration, rope_scaling=scaling)


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown activation": (
        changed(LLAMA, hidden_act="quick_gelu"),
        "hidden_act: .*one of silu, gelu, .*found 'quick_gelu'",
    ),
    "an activation that is no name": (changed(LLAMA, hidden_act=["silu"]), "hidden_act.*'silu'"),
    "dynamic rope": (
        scaled(LLAMA, type="dynamic", factor=2.0),
        "rope_type.*one of default, linear, llama3, yarn, longrope, found 'dynamic'",
    ),
    "longrope": (
        changed(LLAMA, rope_parameters=LONGROPE),
        "short_factor.*expected a list of 5 numbers",
    ),
    "a rope type that is no name": (scaled(LLAMA, rope_type=[1]), r"rope_type.*found \[1\]"),
    "a scaling that is no object": (changed(LLAMA, rope_scaling=7), "rope_scaling.*an object"),
    "a rope per kind of block": (
        changed(QWEN2, rope_parameters={"full_attention": {"rope_theta": 1e4}}),
        "rope_parameters.*one rotary embedding for all blocks",
    ),
    "a rope factor that is missing": (scaled(LLAMA, type="linear"), "factor.*no such key"),
    "a rope factor that is NaN": (scaled(LLAMA, type="linear", factor=math.nan), "factor.*nan"),
    "a rope factor of zero": (scaled(LLAMA, type="linear", factor=0), "factor.*found 0"),
    "a rope factor that is a name": (scaled(LLAMA, type="linear", factor="2"), "factor.*a number"),
    "llama3 factors in the wrong order": (
        scaled(LLAMA, **LLAMA3 | {"high_freq_factor": 0.5}),
        "high_freq_factor.*at least low_freq_factor",
    ),
    "an attention factor of zero": (scaled(LLAMA, **YARN, attention_factor=0), "attention_factor"),
    "a rope base of one": (changed(LLAMA, rope_theta=1.0), "rope_theta.*from 2"),
    "a rope base that is huge": (changed(LLAMA, rope_theta=10**400), "rope_theta.*a number from"),
    "a share of the heads in a family without": (
        changed(LLAMA, partial_rotary_factor=0.4),
        "partial_rotary_factor.*rotates whole heads, found 0.4",
    ),
    "a share above one": (changed(GPT_NEOX, rotary_pct=1.5), "rotary_pct.*to 1, found 1.5"),
    "an odd number of rotating features": (
        changed(LLAMA, head_dim=13),
        "an even number of the 13 features to rotate, found 13",
    ),
    "a share that rounds to nothing": (changed(GPT_NEOX, rotary_pct=0.01), "rotary_pct.*found 0"),
    "more rotating features than a head has": (changed(GPTJ, rotary_dim=14), "rotary_dim.*to 13"),
    "heads that do not divide the width": (
        changed(LLAMA, head_dim=None, num_attention_heads=4, num_key_value_heads=1),
        "heads do not divide.*hidden 39, heads 4",
    ),
    "more heads than width": (
        changed(GPT_NEO, num_heads=40),
        "heads do not divide.*hidden 39, heads 40",
    ),
    "key-value heads that do not divide": (
        changed(LLAMA, num_attention_heads=5, num_key_value_heads=2),
        "heads do not divide.*heads 5, key-value heads 2",
    ),
    "codegen heads outside its four slices": (
        changed(GPTJ, model_type="codegen"),
        "heads do not divide.*4 divide.*heads 3",
    ),
    "an epsilon of zero": (changed(LLAMA, rms_norm_eps=0.0), "rms_norm_eps.*a number from 1e-12"),
    "an epsilon that is a flag": (changed(LLAMA, rms_norm_eps=True), "rms_norm_eps.*a number"),
    "a flag that is a name": (
        changed(LLAMA, tie_word_embeddings="false"),
        "tie_word_embeddings.*true or false, found 'false'",
    ),
    "a bias flag that is a number": (changed(LLAMA, mlp_bias=1), "mlp_bias.*true or false"),
    "too few kinds": (
        changed(QWEN2, layer_types=["full_attention"] * 2),
        r"layer_types.*a list of 3 kinds, one per block, found \['full_attention', ",
    ),
    "an unknown kind": (
        changed(QWEN2, layer_types=["full_attention", "chunked_attention", None]),
        "layer_types.*among full_attention, sliding_attention, found 'chunked_attention'",
    ),
    "kinds that are no list": (changed(QWEN2, layer_types=3), "layer_types.*found 3"),
    "attention types for another depth": (
        changed(GPT_NEO, attention_types=[[["global", "local"], 2]]),
        "attention_types.*a list of 3 kinds",
    ),
    "attention types that are missing": (
        changed(GPT_NEO, attention_types=GONE),
        "attention_types.*a list of 3 kinds",
    ),
    "attention types that are flat": (
        changed(GPT_NEO, attention_types=["global", "local", "local"]),
        r"attention_types.*a list of \[kinds, times\]",
    ),
    "attention types without end": (
        changed(GPT_NEO, attention_types=[[["global"] * 9, 10**12]]),
        "attention_types.*an integer from 1 to",
    ),
    "attention types of an unknown kind": (
        changed(GPT_NEO, attention_types=[[["sparse"], 3]]),
        "attention_types.*among global, local, found 'sparse'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_configuration_that_cannot_be_is_refused_in_one_line(case: str) -> None:
    configuration, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        plan_of(configuration)
    assert "config.json" in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("model_type", ["t9", None, 7, ["llama"], "x" * 10_000, HUGE])
def test_an_unknown_family_is_told_which_there_are_and_how_to_add_one(model_type: Any) -> None:
    with pytest.raises(UnknownFamily) as caught:
        plan_of(changed(LLAMA, model_type=model_type))
    message = str(caught.value)
    assert "one that `crumb families` lists" in message
    assert "write one file in crumb/architectures (docs/adding.md)" in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("model_type", "nearest"),
    [("qwen4", "qwen3"), ("Llama", "llama"), ("gemma3n_text", "gemma3_text")],
)
def test_the_nearest_family_is_named(model_type: str, nearest: str) -> None:
    with pytest.raises(UnknownFamily, match=rf"the nearest: .*\b{nearest}\b"):
        plan_of(changed(LLAMA, model_type=model_type))


def test_the_families_are_found_by_their_files() -> None:
    assert list(families()) == sorted(families())
    assert {"codegen", "gpt_neo", "gpt_neox", "gptj", "llama", "mistral", "qwen2"} <= set(
        families()
    )


def test_a_pattern_that_repeats_for_ever_is_written_out_only_past_the_last_block() -> None:
    assert len(repeat_kinds([[["global"] * 9, 2**24]], "attention_types", 3)) == 4 * 4
    assert repeat_kinds([[["global", "local"], 2]], "attention_types", 4) == ["global", "local"] * 2


WEIRD_NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**63, 10**400, -(10**400), 0.0, -0.0, 1e-320, 1e308]),
    st.floats(),
)
WEIRD = st.recursive(
    st.one_of(
        st.none(), st.booleans(), WEIRD_NUMBERS, st.sampled_from(["", "yarn", "local", "gelu"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta"]), inner, max_size=3),
    ),
    max_leaves=5,
)
READ_BUT_NOT_SET = (
    "rope_parameters",
    "layer_types",
    "attention_layers",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)
KEYS = st.sampled_from(
    sorted({*READ_BUT_NOT_SET, *(key for each in VARIANTS.values() for key in each)})
)
SCALING_KEYS = st.sampled_from([*LLAMA3, *YARN, "attention_factor", "mscale", "mscale_all_dim"])
SCALING_KEYS |= st.sampled_from(["beta_fast", "beta_slow", "truncate", "type", "rope_theta"])
SCALINGS = st.dictionaries(SCALING_KEYS, WEIRD, max_size=4)


def check_numbers(configuration: Mapping[str, Any]) -> None:
    """Either refused in one short line, or a Plan that prints and whose ropes are finite."""
    plan, message = None, ""
    try:
        plan = plan_of(configuration)
    except CrumbError as error:
        message = str(error)
    assert len(message) < 500
    if plan is None:
        return
    assert str(plan)
    for rope in set(ropes(plan)):
        frequencies = rope.frequencies()
        assert frequencies.shape == (rope.dimensions // 2,)
        assert np.isfinite(frequencies).all()
        assert math.isfinite(rope.magnitude())
        assert rope.magnitude() > 0


@settings(max_examples=400)
@given(st.sampled_from(sorted(VARIANTS)), st.dictionaries(KEYS, WEIRD, min_size=1, max_size=3))
@example("gpt_neo", {"attention_types": [[[["local"]], 3]]})
@example("qwen2", {"layer_types": [{}, [], None]})
@example("llama", {"vocab_size": [10**5000]})
def test_only_a_crumb_error_comes_out_of_a_weird_configuration(
    variant: str, changes: dict[str, Any]
) -> None:
    check_numbers(VARIANTS[variant] | changes)


@settings(max_examples=400)
@given(st.sampled_from(["llama-linear", "llama-llama3", "llama-yarn", "gpt_neox-linear"]), SCALINGS)
@example("llama-yarn", {"original_max_position_embeddings": 1e-12, "beta_fast": 1e12})
@example("llama-yarn", {"original_max_position_embeddings": 6})
@example("llama-yarn", {"mscale": 1e12, "mscale_all_dim": 1e-12, "factor": 1e12})
@example("llama-llama3", {"low_freq_factor": 1e-12, "high_freq_factor": 2e-12})
def test_only_a_crumb_error_comes_out_of_a_weird_rope_scaling(
    variant: str, changes: dict[str, Any]
) -> None:
    configuration = VARIANTS[variant]
    check_numbers(configuration | {"rope_scaling": configuration["rope_scaling"] | changes})
