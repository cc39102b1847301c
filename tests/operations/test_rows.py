"""Every row of the table of operations: its gradient is that of its reference.

In: one operation of each kind at least, with widths that no vector divides, in f64. Out: equal
slopes, and the native engine's numbers beside the reference's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from operation_checks import Alone, check_gradient, check_native, drawn, native_output

from crumb.kernels.dispatch import supported_sets
from crumb.operations.activation import FUNCTIONS, NUMBERED, Activation
from crumb.operations.add import Add
from crumb.operations.attention import QUERY_BLOCK, Attention
from crumb.operations.conv import Conv
from crumb.operations.embed import Embed
from crumb.operations.experts import CLAMPED, Experts
from crumb.operations.gate import Gate
from crumb.operations.headlinear import HeadLinear
from crumb.operations.join import Join
from crumb.operations.linear import Linear
from crumb.operations.multiply import Multiply
from crumb.operations.norm import Norm
from crumb.operations.operation import Context, Operation
from crumb.operations.places import Buckets, Slopes, Temperature
from crumb.operations.recurrence import RULES, Recurrence
from crumb.operations.rope import Rope
from crumb.operations.rotary import Rotary
from crumb.operations.router import Router
from crumb.operations.split import Split
from crumb.operations.table import OPERATIONS, row_of

Case = tuple[Operation, tuple[Any, ...], dict[str, Any], int]
"""Operation, arrays it reads, weights, and how many of the arrays are places or tokens."""

PLACES = np.arange(7)[None, :]
UNIT = 2.0**-24


def norm(kind: str, bias: bool, groups: int, per_channel: bool) -> Case:
    width = 42 if per_channel else 42 // groups
    weights = {"w": drawn(width), "b": drawn(width, seed=1)} if bias else {"w": drawn(width)}
    names = ("w", "b" if bias else None)
    op = Norm("x", "y", kind, *names, 1e-3, 42, groups, per_channel)
    return op, (drawn(1, 7, 42) + 0.3,), weights, 0


def attention(**changed: Any) -> Case:
    tokens = changed.pop("tokens", 9)
    heads, few, dim = changed.pop("shape", (4, 2, 5))
    settings = {"causal": True, "window": None, "state": None} | changed
    value = None if changed.pop("latent", False) else "v"
    settings.pop("latent", None)
    op = Attention("q", "k", value, "y", heads, few, dim, 0.4, **settings)
    widths = (heads * dim, few * dim, few * op.mixed_dim)[: 3 if value else 2]
    reads = tuple(drawn(1, tokens, width, seed=k) for k, width in enumerate(widths))
    return op, reads, {spec.name: drawn(*spec.shape) for spec in op.tensors()}, 0


def rotary(style: str, kind: str = "default") -> Case:
    scaling = () if kind == "default" else (("factor", 4.0),)
    rope = Rope(6, 30.0, scaling, kind)
    return Rotary("x", "places", "y", 3, style, rope), (drawn(1, 7, 24), PLACES), {}, 1


def experts(biases: bool = False, **changed: Any) -> Case:
    count, used, wide, inner = 6, 3, 21, 13
    names = [f"{role}_bias" for role in ("gate", "up", "down")] if biases else []
    settings = {"function": "silu"} | {name: f"{name}.{{expert}}" for name in names} | changed
    sizes = (count, used, wide, inner)
    op = Experts(
        "x", "shares", "chosen", "y", "g.{expert}", "u.{expert}", "d.{expert}", *sizes, **settings
    )
    weights = {spec.name: drawn(*spec.shape, seed=k) / 2 for k, spec in enumerate(op.tensors())}
    chosen = np.argsort(drawn(1, 7, count, seed=3), axis=-1)[..., :used]  # the last two: rarely
    return op, (drawn(1, 7, wide), drawn(1, 7, used, seed=1), chosen.astype(float)), weights, 1


def route(bias: bool = False, **changed: Any) -> Case:
    op = Router("x", "shares", "chosen", 12, 4, bias="b" if bias else None, **changed)
    return op, (drawn(1, 7, 12),), {"b": drawn(12)} if bias else {}, 0


def head_linear(heads: int, inputs: int, outputs: int) -> Case:
    op = HeadLinear("x", "y", "w.{head}", heads, inputs, outputs)
    weights = {spec.name: drawn(*spec.shape, seed=k) for k, spec in enumerate(op.tensors())}
    return op, (drawn(1, 7, heads * inputs),), weights, 0


def conv(form: str = "taps", taps: int = 2, bias: bool = False, flat: bool = False) -> Case:
    weight = None if form == "change" else "w"
    op = Conv("x", "y", weight, "b" if bias else None, 21, taps, form, "slot", flat)
    weights = {spec.name: drawn(*spec.shape, seed=k) for k, spec in enumerate(op.tensors())}
    return op, (drawn(1, 7, 21),), weights, 0


def recurrence(scale: float = 1.0) -> Case:
    """`scale` of the keys: large ones make one token all there is."""
    op = Recurrence(("k", "v"), "y", "wkv4", 21, 21, 1, 1, ("decay", "bonus"), "slot")
    weights = {name: drawn(21, seed=k) for k, name in enumerate(op.weights)}
    return op, (scale * drawn(1, 12, 21), drawn(1, 12, 21, seed=1)), weights, 0


def matrix_state(rule: str, heads: int, key_heads: int, key_dim: int, value_dim: int) -> Case:
    inputs, weights = RULES[rule].inputs, ("rate", "bias", "skip")[: 2 if rule == "delta" else 3]
    sizes = (heads, key_heads, key_dim, value_dim)
    op = Recurrence(inputs, "y", rule, *sizes, weights, "slot")
    widths = (key_heads * key_dim, key_heads * key_dim, heads * value_dim, heads, heads)
    reads = tuple(
        drawn(1, 37, width, seed=k) / (key_dim**0.5 if k < 2 else 1.0)
        for k, width in enumerate(widths[: len(inputs)])
    )
    return op, reads, {name: drawn(heads, seed=k) - 1 for k, name in enumerate(weights)}, 0


def wkv_matrix(rule: str, heads: int, key_dim: int, value_dim: int, scale: float = 1.0) -> Case:
    """`scale` of the paces: large ones make features fade at once."""
    wide, own = heads * key_dim, "own" if rule == "wkv7" else None
    names = ("decay", "bonus") if own is None else ("direction", "renewal", "bonus")
    sizes = (heads, heads, key_dim, value_dim)
    op = Recurrence(RULES[rule].inputs, "y", rule, *sizes, names, "slot", own)
    widths = (wide, wide, heads * value_dim, wide, wide)[: len(op.inputs)]
    reads = tuple(
        drawn(1, 37, width, seed=k) * (scale if k == 3 else 1.0) for k, width in enumerate(widths)
    )
    weights = {each.name: drawn(*each.shape, seed=k) for k, each in enumerate(op.tensors())}
    return op, reads, weights, 0


ELEMENTS = drawn(1, 7, 21), drawn(1, 7, 21, seed=1)

CASES: dict[str, Case] = {
    "embed": (
        Embed("tokens", "y", "w", 11, 5),
        (np.asarray([[3, 0, 3, 10]]),),
        {"w": drawn(11, 5)},
        1,
    ),
    "embed from a later row": (
        Embed("tokens", "y", "w", 11, 5, 2),
        (np.asarray([[3, 0, 3, 8]]),),
        {"w": drawn(11, 5)},
        1,
    ),
    "norm of stacked weights": (
        Norm("x", "y", "layer", "w", None, 1e-3, 42, 3, per_channel=True, stacked=True),
        (drawn(1, 7, 42),),
        {"w": drawn(3, 14)},
        0,
    ),
    "norm of weights around 0": (
        Norm("x", "y", "rms", "w", None, 1e-3, 42, 3, offset=1.0),
        (drawn(1, 7, 42),),
        {"w": drawn(14)},
        0,
    ),
    "norm without weights": (
        Norm("x", "y", "rms", None, None, 1e-3, 42, 3),
        (drawn(1, 7, 42),),
        {},
        0,
    ),
    "linear": (Linear("x", "y", "w", None, 21, 9), ELEMENTS[:1], {"w": drawn(9, 21)}, 0),
    "linear with a bias": (
        Linear("x", "y", "w", "b", 21, 9),
        ELEMENTS[:1],
        {"w": drawn(9, 21), "b": drawn(9)},
        0,
    ),
    "split": (Split("x", ("a", "b", "c"), 2, (5, 3, 7)), (drawn(1, 7, 30),), {}, 0),
    "join": (
        Join(("a", "b", "c"), "y", (5, 3, 2), 4),
        (drawn(1, 7, 20), drawn(1, 7, 3), drawn(1, 7, 8)),
        {},
        0,
    ),
    "join in one": (Join(("a", "b"), "y", (5, 3), 1), (drawn(1, 7, 5), drawn(1, 7, 3)), {}, 0),
    "multiply": (Multiply("a", "b", "y"), ELEMENTS, {}, 0),
    "add": (Add("a", "b", "y"), ELEMENTS, {}, 0),
    "rotary half": rotary("half"),
    "rotary interleaved": rotary("interleaved"),
    "rotary scaled": rotary("half", "linear"),
    "attention": attention(),
    "attention of an encoder": attention(causal=False),
    "attention with a window": attention(window=3),
    "attention with a soft cap": attention(soft_cap=0.7),
    "attention with sinks": attention(sinks="s"),
    "attention with sinks and a window": attention(sinks="s", window=3, soft_cap=2.0),
    "attention with slopes": attention(slopes=Slopes(), shape=(6, 2, 5)),
    "attention with rounded slopes": attention(slopes=Slopes(0.3, rounded=True), tokens=300),
    "attention with slopes, a window and a cap": attention(slopes=Slopes(), window=3, soft_cap=2.0),
    "attention with a temperature": attention(temperature=Temperature(0.4, 3.0, 1)),
    "attention in chunks": attention(chunk=4, temperature=Temperature(0.2, 2.0)),
    "attention in chunks of many queries": attention(tokens=QUERY_BLOCK + 37, chunk=50),
    "attention with buckets": attention(buckets=Buckets(7, 6, False), bias="b", tokens=60),
    "attention with buckets both ways": attention(
        buckets=Buckets(12, 40, True), bias="b", causal=False, tokens=QUERY_BLOCK + 20
    ),
    "attention with buckets and a cap": attention(
        buckets=Buckets(4, 3, False), bias="b", soft_cap=0.7, shape=(3, 1, 5), window=17, tokens=40
    ),
    "attention of narrow values": attention(value_dim=3),
    "attention of wide values": attention(value_dim=19),
    "latent attention": attention(latent=True, shape=(4, 1, 21), value_dim=17),
    "latent attention with sinks": attention(latent=True, shape=(3, 1, 9), value_dim=5, sinks="s"),
    "attention of many queries": attention(tokens=QUERY_BLOCK + 5, window=20, shape=(2, 1, 3)),
    "matrices of heads": head_linear(3, 21, 13),
    "matrices of heads of whole vectors": head_linear(5, 32, 16),
    "convolution": conv(taps=4, bias=True),
    "convolution of many taps": conv(taps=8),
    "token shift": conv("mix"),
    "token shift the other way": conv("lerp"),
    "change from token to token": conv("change"),
    "token shift by a flat weight": conv("lerp", flat=True),
    "recurrence wkv4": recurrence(),
    "recurrence wkv4 of large keys": recurrence(40.0),
    "recurrence delta": matrix_state("delta", 4, 2, 5, 19),
    "recurrence delta of whole vectors": matrix_state("delta", 2, 2, 16, 32),
    "recurrence scan": matrix_state("scan", 6, 2, 7, 5),
    "recurrence scan of one key": matrix_state("scan", 3, 1, 16, 17),
    "recurrence wkv6": wkv_matrix("wkv6", 3, 5, 19),
    "recurrence wkv6 of whole vectors": wkv_matrix("wkv6", 2, 16, 32),
    "recurrence wkv6 of large paces": wkv_matrix("wkv6", 2, 4, 3, 30.0),
    "recurrence wkv7": wkv_matrix("wkv7", 3, 5, 19),
    "recurrence wkv7 of whole vectors": wkv_matrix("wkv7", 2, 32, 16),
    "recurrence wkv7 of large paces": wkv_matrix("wkv7", 2, 4, 3, 30.0),
    "experts": experts(),
    "experts with biases": experts(biases=True, function="gelu"),
    "experts with clamped gates": experts(biases=True, function=CLAMPED, slope=1.702, limit=0.7),
    "experts whose shares come first": experts(shares_first=True),
    "router": route(finish="sum", scoring="softmax"),
    "router by raw shares": route(scoring="softmax", factor=2.5),
    "router by logits": route(finish="softmax"),
    "router to one": route(finish="sigmoid"),
    "router with a bias": route(True, scoring="sigmoid", finish="sum", floor=1e-20, factor=1.8),
    "router in groups": route(
        True, scoring="sigmoid", finish="sum", groups=4, top_groups=2, group_best=2
    ),
    "router in groups by the best": route(scoring="softmax", groups=3, top_groups=2),
    **{
        f"norm {kind}{' with a bias' if bias else ''} of {groups}{' per channel' if own else ''}": (
            norm(kind, bias, groups, own)
        )
        for kind in ("rms", "layer")
        for bias in (False, True)
        for groups, own in ((1, False), (3, False), (3, True), (2, True))
    },
    **{
        f"activation {name}": (Activation("x", "y", name), ELEMENTS[:1], {}, 0)
        for name in FUNCTIONS
    },
    **{
        f"activation {name}": (Activation("x", "y", name, 0.7), ELEMENTS[:1], {}, 0)
        for name in NUMBERED
    },
    **{f"gate {name}": (Gate("a", "b", "y", name), ELEMENTS, {}, 0) for name in FUNCTIONS},
}


def test_every_kind_has_a_case() -> None:
    assert {type(case[0]) for case in CASES.values()} == set(OPERATIONS)


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_is_the_slope_of_the_reference(name: str) -> None:
    operation, reads, weights, places = CASES[name]
    check_gradient(operation, reads, weights, places)


NATIVE = [name for name, case in CASES.items() if not isinstance(case[0], Embed | Linear)]
"""Kinds that read no tokens and are not joined: tests/architectures runs those."""


@pytest.mark.parametrize("name", NATIVE)
def test_the_native_engine_computes_what_the_reference_does(name: str) -> None:
    operation, reads, weights, _ = CASES[name]
    # Some tens of roundings of f32, and math.inl's own errors: erf is off by 8e-7 of 1.
    check_native(operation, reads, weights, 64 * UNIT)


def test_groups_of_a_norm_are_norms_of_their_own() -> None:
    operation, (x,), weights, _ = norm("layer", True, 3, True)
    (together,) = row_of(operation).reference(operation, (x,), Context(weights))
    for group in range(3):
        part = slice(14 * group, 14 * group + 14)
        alone = Norm("x", "y", "layer", "w", "b", 1e-3, 14)
        own = {each: weights[each][part] for each in weights}
        (expected,) = row_of(alone).reference(alone, (x[..., part],), Context(own))
        np.testing.assert_array_equal(together[..., part], expected)


def test_a_join_undoes_a_split() -> None:
    split = Split("x", ("a", "b", "c"), 2, (5, 3, 7))
    join = Join(("a", "b", "c"), "y", (5, 3, 7), 2)
    x = drawn(1, 7, 30)
    parts = row_of(split).reference(split, (x,), Context({}))
    np.testing.assert_array_equal(row_of(join).reference(join, parts, Context({}))[0], x)


def test_of_experts_that_tie_the_first_are_chosen() -> None:
    op, _, _, _ = route(scoring="softmax")
    scores = np.zeros((1, 3, 12))
    scores[0, 1, [2, 7, 9]] = 1.0
    shares, chosen = row_of(op).reference(op, (scores,), Context({}))
    assert chosen[0].tolist() == [[0, 1, 2, 3], [2, 7, 9, 0], [0, 1, 2, 3]]
    check_native(op, (scores,), {}, 64 * UNIT)
    assert (shares[0, 0] == 1 / 12).all()


def test_a_token_gets_the_same_from_its_experts_whoever_is_beside_it() -> None:
    op, (x, shares, chosen), weights, _ = experts(biases=True)
    together = native_output(op, (x, shares, chosen), weights)
    for token in range(x.shape[1]):
        alone = tuple(each[:, token : token + 1] for each in (x, shares, chosen))
        np.testing.assert_array_equal(native_output(op, alone, weights)[0], together[token])


STATEFUL = [name for name, case in CASES.items() if isinstance(case[0], Conv | Recurrence)]


@pytest.mark.parametrize("name", STATEFUL)
def test_a_text_in_chunks_leaves_the_same_state_and_the_same_bits(name: str) -> None:
    operation, reads, weights, _ = CASES[name]
    whole, *_ = row_of(operation).reference(operation, reads, Context(weights))
    rows = reads[0].shape[1]
    states: dict[str, tuple[Any, ...]] = {}
    singly, snapshots = [], []
    for token in range(rows):
        one = tuple(each[:, token : token + 1] for each in reads)
        snapshots.append(dict(states))
        singly.append(row_of(operation).reference(operation, one, Context(weights, states))[0])
    np.testing.assert_allclose(np.concatenate(singly, axis=1), whole, rtol=1e-12)
    # A snapshot is a state that nobody changes: from there the text goes on as it did.
    rest = tuple(each[:, 3:] for each in reads)
    again = row_of(operation).reference(operation, rest, Context(weights, dict(snapshots[3])))[0]
    np.testing.assert_array_equal(again, np.concatenate(singly[3:], axis=1))
    native = native_output(operation, reads, weights)
    for cuts in ((1,), (3, 5), tuple(range(1, rows))):
        np.testing.assert_array_equal(native_output(operation, reads, weights, cuts), native)


@pytest.mark.parametrize("name", STATEFUL)
def test_sets_with_fused_multiply_adds_give_the_same_bits(name: str) -> None:
    operation, reads, weights, _ = CASES[name]
    fused = supported_sets()[1:]
    outputs = [Alone(operation, reads, weights, isa).arrays["y"] for isa in fused]
    for other in outputs[1:]:
        np.testing.assert_array_equal(other, outputs[0])
