"""What a Plan can hold beyond the families: an encoder, cross-attention, a recurrent state.

In: plans built by hand. They run through the same Session, stages and state slots as every model;
the expected logits are computed beside it in float64, one token at a time.
Also: what a Plan refuses, and what a Session refuses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import LLAMA, make_weights, tolerance, write_model

from crumb.architectures.plan import Plan, Stage
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.errors import CheckpointError, UsageError
from crumb.files.model_files import MadeFiles
from crumb.operations.add import Add
from crumb.operations.attention import Attention
from crumb.operations.embed import Embed
from crumb.operations.linear import Linear
from crumb.operations.multiply import Multiply
from crumb.operations.norm import Norm
from crumb.operations.operation import Context, Operation, Row, TensorSpec, same_width
from crumb.operations.rope import Rope
from crumb.operations.rotary import Rotary
from crumb.operations.table import OPERATIONS
from crumb.run.model import Model, open_model
from crumb.run.session import Session

Floats = NDArray[np.float64]

WIDTH, HEADS, HEAD_DIM, VOCABULARY, POSITIONS = 10, 2, 6, 23, 40
INNER = HEADS * HEAD_DIM
ROPE = Rope(dimensions=HEAD_DIM, theta=30.0)
SPLITS = ([], [1], [1, 2, 9, 17], list(range(1, 18)))
"""Where a text of 18 tokens is cut into the pieces that a session is fed."""


@dataclass(frozen=True)
class WeightsByName:
    """The part of a TensorMap that running a model needs."""

    weights: dict[str, NDArray[np.float32]]

    def read_float(self, name: str) -> NDArray[np.float32]:
        return self.weights[name]


def model_of(plan: Plan) -> Model:
    tensors: Any = WeightsByName(make_weights(plan))
    return Model(Checkpoint(Path(), {}, plan, tensors, (), MadeFiles(Path(), {})))


def linear(source: str, output: str, weight: str, wide: tuple[int, int]) -> Linear:
    return Linear(source, output, weight, None, *wide)


def attend(name: str, reads: str, positions: str | None, **settings: Any) -> list[Operation]:
    """Queries from "normed", keys and values from `reads`, and the output added to the stream."""
    stream = settings.pop("stream")
    turned = [] if positions is None else ["query", "key"]
    return [
        Norm(stream, "normed", "rms", f"{name}.norm", None, 0.01, WIDTH),
        linear("normed", "query", f"{name}.query", (WIDTH, INNER)),
        linear(reads, "key", f"{name}.key", (WIDTH, INNER)),
        linear(reads, "value", f"{name}.value", (WIDTH, INNER)),
        *[Rotary(each, str(positions), each, HEADS, "half", ROPE) for each in turned],
        Attention(
            *("query", "key", "value", "mixed"),
            *(HEADS, HEADS, HEAD_DIM, 1 / math.sqrt(HEAD_DIM)),
            window=None,
            **settings,
        ),
        linear("mixed", "mixed", f"{name}.output", (INNER, WIDTH)),
        Add(stream, "mixed", stream),
    ]


def head() -> Stage:
    norm = Norm("hidden", "normed", "rms", "final", None, 0.01, WIDTH)
    logits = linear("normed", "logits", "head", (WIDTH, VOCABULARY))
    return Stage("head", (norm, logits), ("hidden",), ("logits",))


def encoder_decoder() -> Plan:
    """Two encoder stages that run once, then a decoder block with self- and cross-attention."""
    read = Embed("source", "encoded", "source.embedding", VOCABULARY, WIDTH)
    seen = {"stream": "encoded", "causal": False, "state": None}
    encode = attend("encoder", "normed", "source_positions", **seen)
    embed = Embed("tokens", "hidden", "embedding", VOCABULARY, WIDTH)
    past = attend("self", "normed", "positions", stream="hidden", causal=True, state="self")
    cross = attend("cross", "encoded", None, stream="hidden", causal=False, state=None)
    given = ("encoded", "source_positions")
    stages = (
        Stage("source", (read,), ("source",), ("encoded",), once=True),
        Stage("encoder", tuple(encode), given, ("encoded",), once=True),
        Stage("embedding", (embed,), ("tokens",), ("hidden",)),
        Stage("decoder", (*past, *cross), ("hidden", "positions", "encoded"), ("hidden",)),
        head(),
    )
    return Plan("handmade", VOCABULARY, POSITIONS, stages, ("source", "source_positions"))


def rms(x: Floats, weight: Floats) -> Floats:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 0.01) * weight


def turn(heads: Floats, position: int) -> Floats:
    """Rotate the (HEADS, HEAD_DIM) features of one token, each pair as a complex number."""
    half = HEAD_DIM // 2
    pairs = heads[:, :half] + 1j * heads[:, half:]
    pairs = pairs * np.exp(1j * position * ROPE.theta ** -(np.arange(half) / half))
    return np.concatenate([pairs.real, pairs.imag], axis=1)


def mix(
    name: str, weights: dict[str, Floats], stream: Floats, reads: Floats, **how: bool
) -> Floats:
    """One attention over (tokens, WIDTH), written as loops over queries and heads."""
    normed = rms(stream, weights[f"{name}.norm"])
    source = normed if how["own"] else reads
    query, key, value = (
        (part @ weights[f"{name}.{role}"].T).reshape(-1, HEADS, HEAD_DIM)
        for part, role in ((normed, "query"), (source, "key"), (source, "value"))
    )
    if how["turned"]:
        query = np.stack([turn(heads, place) for place, heads in enumerate(query)])
        key = np.stack([turn(heads, place) for place, heads in enumerate(key)])
    mixed = np.zeros_like(query)
    for place in range(len(query)):
        seen = slice(place + 1) if how["causal"] else slice(None)
        for each in range(HEADS):
            scores = key[seen, each] @ query[place, each] / math.sqrt(HEAD_DIM)
            share = np.exp(scores - scores.max())
            mixed[place, each] = share @ value[seen, each] / share.sum()
    return stream + mixed.reshape(-1, INNER) @ weights[f"{name}.output"].T


def expected_logits(source: NDArray[np.int64], tokens: NDArray[np.int64]) -> Floats:
    stored = make_weights(encoder_decoder())
    weights = {name: array.astype(np.float64) for name, array in stored.items()}
    encoded = weights["source.embedding"][source]
    encoded = mix("encoder", weights, encoded, encoded, own=True, turned=True, causal=False)
    hidden = weights["embedding"][tokens]
    hidden = mix("self", weights, hidden, hidden, own=True, turned=True, causal=True)
    hidden = mix("cross", weights, hidden, encoded, own=False, turned=False, causal=False)
    logits: Floats = rms(hidden, weights["final"]) @ weights["head"].T
    return logits


def text(seed: int, count: int) -> NDArray[np.int64]:
    return np.random.PCG64(seed).random_raw(count).astype(np.int64) % VOCABULARY


def source_of(tokens: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    return {"source": tokens[None], "source_positions": np.arange(len(tokens))[None]}


@pytest.mark.parametrize("cuts", SPLITS, ids=len)
def test_an_encoder_and_cross_attention_run_in_a_session(cuts: list[int]) -> None:
    source, tokens = text(1, 13), text(2, 18)
    model = model_of(encoder_decoder())
    session = Session(model, source_of(source))
    logits = np.concatenate([session.feed(part) for part in np.split(tokens, cuts)])
    expected = expected_logits(source, tokens)
    allowed = tolerance(model.plan, expected.astype(np.float32))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=allowed)


def test_a_batch_of_texts_has_a_batch_of_sources() -> None:
    model = model_of(encoder_decoder())
    sources, tokens = text(3, 26).reshape(2, 13), text(4, 36).reshape(2, 18)
    places = np.broadcast_to(np.arange(13), (2, 13))
    logits = model.logits(tokens, {"source": sources, "source_positions": places})
    for row in range(2):
        expected = expected_logits(sources[row], tokens[row])
        allowed = tolerance(model.plan, expected.astype(np.float32))
        np.testing.assert_allclose(logits[row], expected, rtol=0, atol=allowed)


def test_an_encoder_runs_once_in_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[str] = []
    row = OPERATIONS[Embed]

    def note(op: Embed, reads: tuple[Any, ...], context: Context) -> tuple[Any, ...]:
        looked_up.append(op.input)
        return row.reference(op, reads, context)

    monkeypatch.setitem(OPERATIONS, Embed, replace(row, reference=note))
    session = Session(model_of(encoder_decoder()), source_of(text(1, 13)))
    for token in text(2, 4):
        session.feed([token])
    assert looked_up == ["source", *["tokens"] * 4]


def test_an_encoder_cannot_read_what_changes_from_call_to_call() -> None:
    plan = encoder_decoder()
    first = replace(plan.stages[0], inputs=("tokens",))
    with pytest.raises(CheckpointError, match=r"nothing has written.*found tokens"):
        replace(plan, stages=(first, *plan.stages[1:]))


@pytest.mark.parametrize("given", [{}, source_of(text(1, 3)) | {"sound": np.zeros((1, 2))}])
def test_a_session_wants_exactly_the_inputs_of_its_plan(given: dict[str, Any]) -> None:
    session = Session(model_of(encoder_decoder()), given)
    with pytest.raises(UsageError, match="expected source, source_positions"):
        session.feed([1])


@dataclass(frozen=True)
class Recurrence(Operation):
    """output[t] = decay * output[t - 1] + input[t], feature by feature."""

    input: str
    output: str
    weight: str
    features: int
    state: str

    def tensors(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(self.weight, (self.features,), matrix=False),)


def run_recurrence(op: Recurrence, reads: tuple[Any, ...], context: Context) -> tuple[Any, ...]:
    x, decay = reads[0], context.weights[op.weight] * np.float32(0.5)
    states = {} if context.states is None else context.states
    (last,) = states.get(op.state, (np.zeros_like(x[:, 0]),))
    outputs = []
    for place in range(x.shape[1]):
        last = decay * last + x[:, place]
        outputs.append(last)
    states[op.state] = (last,)
    return (np.stack(outputs, axis=1),)


def no_gradient(*_: Any) -> Any:
    raise AssertionError("nothing goes back through it here")


RECURRENCE = Row(Recurrence, same_width, run_recurrence, no_gradient, no_gradient)


def recurrent() -> Plan:
    """One block whose only memory is a recurrent state, gated by its input."""
    operations = (
        Norm("hidden", "normed", "rms", "norm", None, 0.01, WIDTH),
        Recurrence("normed", "carried", "decay", WIDTH, "block.0"),
        Multiply("carried", "normed", "carried"),
        linear("carried", "carried", "mix", (WIDTH, WIDTH)),
        Add("hidden", "carried", "hidden"),
    )
    embed = Embed("tokens", "hidden", "embedding", VOCABULARY, WIDTH)
    stages = (
        Stage("embedding", (embed,), ("tokens",), ("hidden",)),
        Stage("block.0", operations, ("hidden",), ("hidden",)),
        head(),
    )
    return Plan("recurrent", VOCABULARY, POSITIONS, stages)


@pytest.mark.parametrize("cuts", SPLITS, ids=len)
def test_a_recurrent_state_lives_in_the_same_slots(
    cuts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPERATIONS, Recurrence, RECURRENCE)
    model, tokens = model_of(recurrent()), text(5, 18)
    session = Session(model)
    fed = np.concatenate([session.feed(part) for part in np.split(tokens, cuts)])
    weights = {name: array.astype(np.float64) for name, array in make_weights(model.plan).items()}
    hidden = weights["embedding"][tokens]
    normed, carried = rms(hidden, weights["norm"]), np.zeros_like(hidden)
    for place in range(len(tokens)):
        before = carried[place - 1] if place else 0.0
        carried[place] = 0.5 * weights["decay"] * before + normed[place]
    hidden = hidden + carried * normed @ weights["mix"].T
    expected = rms(hidden, weights["final"]) @ weights["head"].T
    allowed = tolerance(model.plan, expected.astype(np.float32))
    np.testing.assert_allclose(fed, expected, rtol=0, atol=allowed)
    np.testing.assert_allclose(model.logits(tokens[None])[0], expected, rtol=0, atol=allowed)


def test_a_new_kind_of_operation_prints_like_the_others() -> None:
    line = "  recurrence carried <- normed            weight=decay features=10 state=block.0"
    assert line in str(recurrent()).splitlines()


def test_a_plan_with_an_encoder_prints_what_it_is_given() -> None:
    lines = str(encoder_decoder()).splitlines()
    assert lines[1:4] == [
        "given: source",
        "given: source_positions",
        "stage source: source -> encoded (once)",
    ]


BROKEN: dict[str, Callable[[Stage], Stage]] = {
    "inputs": lambda block: replace(block, inputs=("absent",)),
    "outputs": lambda block: replace(block, outputs=("absent",)),
    "recurrence": lambda block: replace(block, operations=block.operations[1:]),
}


@pytest.mark.parametrize("reader", BROKEN)
def test_a_buffer_that_nothing_has_written_is_refused(reader: str) -> None:
    plan = recurrent()
    broken = BROKEN[reader](plan.stages[1])
    with pytest.raises(CheckpointError, match=f"block.0: .*{reader}.* nothing has written"):
        replace(plan, stages=(plan.stages[0], broken, plan.stages[2]))


def test_two_operations_cannot_keep_their_state_in_one_slot() -> None:
    plan = recurrent()
    again = replace(plan.stages[1], name="block.1")
    with pytest.raises(CheckpointError, match=r"block\.1.*one slot.*found block\.0"):
        replace(plan, stages=(*plan.stages[:2], again, plan.stages[2]))


@pytest.fixture
def llama(tmp_path: Path) -> Model:
    return open_model(str(write_model(tmp_path, LLAMA)))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "there are no tokens"),
        ([3, -1], "not in the model's vocabulary.*0 to 96, found -1"),
        ([3, 97], "not in the model's vocabulary.*0 to 96, found 97"),
        ([3] * 161, "longer than the model's context.*at most 160 tokens, found 161"),
    ],
)
def test_a_session_refuses_tokens_that_its_model_cannot_take(
    llama: Model, tokens: list[int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Session(llama).feed(tokens)
    with pytest.raises(UsageError, match=message):
        llama.logits(np.asarray([tokens], np.int64))


def test_a_refused_piece_leaves_the_session_as_it_was(llama: Model) -> None:
    session, undisturbed = Session(llama), Session(llama)
    for each in (session, undisturbed):
        each.feed([5, 6, 7])
    with pytest.raises(UsageError, match="found 161"):
        session.feed([1] * 158)
    with pytest.raises(UsageError, match="vocabulary"):
        session.feed([1, 400])
    np.testing.assert_array_equal(session.feed([8]), undisturbed.feed([8]))
    assert session.length_tokens == 4
