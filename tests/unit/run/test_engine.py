"""The engine's promise: the same tokens give the same bits, whatever else happens beside them.

In: the tiny checkpoint, float and quantized. Out: logits compared bit for bit over batches, thread
counts, chunks and cached beginnings; refusals that change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import DoesNotFit, UsageError
from crumb.run.engine import Engine, EngineSequence, Rows, StepPart
from crumb.run.memory_plan import ActivationKind, CacheKind, EngineSettings

Floats = NDArray[np.float32]

CONTEXT, ROWS = 96, 40
GENERATOR = np.random.default_rng(0)
TEXTS = [GENERATOR.integers(0, 256, length).tolist() for length in (70, 33, 16, 5)]

WAYS = [
    (CacheKind.F32, ActivationKind.F32),
    (CacheKind.F16, ActivationKind.INT8),
    (CacheKind.INT8, ActivationKind.INT8),
]


def make_engine(path: Path, **chosen: Any) -> Engine:
    usual = {"context_tokens": CONTEXT, "sequences": 4, "step_tokens": ROWS, "logits_rows": ROWS}
    return Engine(open_checkpoint(path), EngineSettings(**usual | {"threads": 2} | chosen))


def logits_of(engine: Engine, text: Sequence[int], chunks: Sequence[int], reuse: bool) -> Floats:
    """Logits of the tokens that are computed, chunks of these lengths over and over."""
    sequence = engine.begin(text, reuse=reuse)
    rows, step = [], 0
    try:
        while sequence.length_tokens < len(text):
            begin = sequence.length_tokens
            part = text[begin : begin + chunks[step % len(chunks)]]
            rows.append(engine.run([StepPart(sequence, part, Rows.ALL)]).copy())
            step += 1
    finally:
        engine.end(sequence)
    return np.concatenate(rows)


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: f"{way[0]}-{way[1]}")
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A cache and activations."""
    cache, activations = request.param
    return {"cache": cache, "activations": activations}


@pytest.fixture(scope="module")
def alone(way: dict[str, Any], quantized_tiny: Path) -> list[Floats]:
    """Each text on an engine of its own, one thread, one token at a time."""
    return [
        logits_of(make_engine(quantized_tiny, threads=1, **way), each, [1], False) for each in TEXTS
    ]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("chunks", [[ROWS], [7, 1, 16], [17]])
def test_threads_and_chunks_change_no_bit(
    threads: int, chunks: list[int], way: dict[str, Any], alone: list[Floats], quantized_tiny: Path
) -> None:
    engine = make_engine(quantized_tiny, threads=threads, **way)
    for text, expected in zip(TEXTS, alone, strict=True):
        np.testing.assert_array_equal(logits_of(engine, text, chunks, False), expected)


@pytest.mark.parametrize("seed", range(8))
def test_company_in_a_step_changes_no_bit(
    seed: int, way: dict[str, Any], alone: list[Floats], quantized_tiny: Path
) -> None:
    """Texts begin at any time and are cut anyhow, any of them together in a step."""
    generator = np.random.default_rng(seed)
    engine = make_engine(quantized_tiny, **way)
    sequences = [engine.begin(text, reuse=False) for text in TEXTS]
    found: list[list[Floats]] = [[] for _ in TEXTS]
    while any(each.length_tokens < len(text) for each, text in zip(sequences, TEXTS, strict=True)):
        parts, owners, room = [], [], ROWS
        for index in generator.permutation(len(TEXTS)):
            left = len(TEXTS[index]) - sequences[index].length_tokens
            count = int(generator.integers(0, min(left, room) + 1))
            if count:
                begin = sequences[index].length_tokens
                tokens = TEXTS[index][begin : begin + count]
                parts.append(StepPart(sequences[index], tokens, Rows.ALL))
                owners.append(index)
                room -= count
        if not parts:
            continue
        rows = engine.run(parts).copy()
        for part, index in zip(parts, owners, strict=True):
            found[index].append(rows[: len(part.tokens)])
            rows = rows[len(part.tokens) :]
    for rows_of_text, expected in zip(found, alone, strict=True):
        np.testing.assert_array_equal(np.concatenate(rows_of_text), expected)


def test_a_cached_beginning_changes_no_bit_and_saves_its_tokens(
    way: dict[str, Any], alone: list[Floats], quantized_tiny: Path
) -> None:
    engine = make_engine(quantized_tiny, **way)
    for text, expected in zip(TEXTS, alone, strict=True):
        first = logits_of(engine, text, [ROWS], True)
        np.testing.assert_array_equal(first, expected)
        again = logits_of(engine, text, [9], True)
        cached = (len(text) - 1) // 16 * 16
        np.testing.assert_array_equal(again, expected[cached:])


def test_int8_differs_from_f32_so_the_ways_are_ways(quantized_tiny: Path) -> None:
    """Otherwise the tests above would compare one way with itself."""
    found = [
        logits_of(
            make_engine(quantized_tiny, cache=cache, activations=activations), TEXTS[0], [40], False
        )
        for cache, activations in WAYS
    ]
    scale = float(np.abs(found[0]).max())
    for one, other in ((0, 1), (1, 2)):
        apart = float(np.abs(found[one] - found[other]).max())
        assert 0 < apart < 0.2 * scale


def test_only_wanted_rows_leave_a_step(float_tiny: Path) -> None:
    engine = make_engine(float_tiny)
    parts = [
        StepPart(engine.begin(TEXTS[index], reuse=False), TEXTS[index][:5], wanted)
        for index, wanted in enumerate((Rows.LAST, Rows.NONE, Rows.ALL))
    ]
    rows = engine.run(parts).copy()
    assert rows.shape == (1 + 0 + 5, 300)
    whole = [logits_of(engine, TEXTS[index][:5], [5], False) for index in (0, 2)]
    np.testing.assert_array_equal(rows, np.concatenate([whole[0][-1:], whole[1]]))
    nothing = engine.run([StepPart(parts[1].sequence, TEXTS[1][5:8], Rows.NONE)])
    assert nothing.shape == (0, 300)


def test_features_are_what_the_head_reads(float_tiny: Path) -> None:
    engine = make_engine(float_tiny, cache="f32", activations="f32")
    sequence = engine.begin(TEXTS[0], reuse=False)
    features = engine.run_to_features([StepPart(sequence, TEXTS[0][:10], Rows.ALL)])
    assert features.shape == (10, 64)
    head = open_checkpoint(float_tiny).tensors.read_float("model.embed_tokens.weight")
    logits = logits_of(engine, TEXTS[0][:10], [10], False)
    # 64 products in f32, in another order.
    np.testing.assert_allclose(
        features @ head.T, logits, rtol=0, atol=64 * 2**-23 * np.abs(logits).max()
    )


@pytest.fixture
def engine(float_tiny: Path) -> Engine:
    """Room for two sequences."""
    return make_engine(float_tiny, sequences=2, logits_rows=8)


def test_texts_beyond_the_context_and_strange_tokens_are_refused(engine: Engine) -> None:
    engine.begin([1] * CONTEXT)
    with pytest.raises(UsageError, match="at most 96 tokens, found 97"):
        engine.begin([1] * (CONTEXT + 1))
    for token in (-1, 300):
        with pytest.raises(UsageError, match=f"0 to 299, found {token}"):
            engine.begin([1, token, 2])
        with pytest.raises(UsageError, match="not in the model's vocabulary"):
            engine.run([StepPart(EngineSequence(), [token])])


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ([], Rows.LAST),
        ([0], Rows.LAST),
        ([3, 0], Rows.LAST),
        ([41], Rows.NONE),
        ([9], Rows.ALL),
    ],
)
def test_steps_that_have_no_room_are_refused_and_change_nothing(
    counts: list[int], wanted: Rows, engine: Engine
) -> None:
    parts = [StepPart(EngineSequence(), [1] * count, wanted) for count in counts]
    before = engine._pages.available
    with pytest.raises(UsageError):
        engine.run(parts)
    assert engine._pages.available == before
    assert not any(part.sequence.pages for part in parts)


def test_a_sequence_comes_once_in_a_step(engine: Engine) -> None:
    sequence = engine.begin([1, 2, 3], reuse=False)
    with pytest.raises(UsageError, match="one sequence in one part"):
        engine.run([StepPart(sequence, [1]), StepPart(sequence, [2])])
    assert sequence.length_tokens == 0


def test_a_full_context_refuses_one_token_more_and_changes_nothing(engine: Engine) -> None:
    sequence = engine.begin([1] * CONTEXT, reuse=False)
    for count in (40, 40, 16):
        engine.run([StepPart(sequence, [1] * count)])
    pages, available = list(sequence.pages), engine._pages.available
    with pytest.raises(UsageError, match="longer than the context"):
        engine.run([StepPart(EngineSequence(), [3]), StepPart(sequence, [1])])
    assert (sequence.pages, sequence.length_tokens) == (pages, CONTEXT)
    assert engine._pages.available == available


def test_a_full_cache_refuses_the_step_and_changes_nothing(
    engine: Engine, float_tiny: Path
) -> None:
    held = [engine.begin([index] * 80, reuse=False) for index in (1, 2)]
    for sequence, token in zip(held, (1, 2), strict=True):
        engine.run([StepPart(sequence, [token] * 40)])
        engine.run([StepPart(sequence, [token] * 40)])
    assert engine._pages.available == 2
    third, fourth = (engine.begin([4] * 30, reuse=False) for _ in range(2))
    with pytest.raises(DoesNotFit, match="the cache is full"):
        engine.run([StepPart(third, [4] * 17), StepPart(fourth, [4] * 16), StepPart(held[0], [1])])
    assert engine._pages.available == 2
    assert (third.pages, fourth.pages, held[0].length_tokens) == ([], [], 80)
    assert len(held[0].pages) == 5
    other = make_engine(float_tiny, sequences=2)
    expected = logits_of(other, [1] * 81, [40], False)[-1]
    np.testing.assert_array_equal(engine.run([StepPart(held[0], [1])])[0], expected)
    for sequence in (*held, third, fourth):
        engine.end(sequence)
    assert engine._pages.available == engine._pages.count


def test_pages_are_shared_while_both_hold_them_and_let_go_once(engine: Engine) -> None:
    text = TEXTS[0]
    logits_of(engine, text, [8], True)
    first, second = engine.begin(text), engine.begin(text)
    assert first.cached_tokens == second.cached_tokens == 64
    assert first.pages == second.pages
    assert engine._pages.available == engine._pages.count - 4
    engine.end(first)
    assert engine._pages.available == engine._pages.count - 4
    engine.end(second)
    assert engine._pages.available == engine._pages.count
    engine.end(second)  # nothing is left to let go
    assert engine._pages.available == engine._pages.count


def test_a_text_that_was_not_to_be_reused_still_serves_later_ones(engine: Engine) -> None:
    logits_of(engine, TEXTS[0], [8], False)
    assert engine.begin(TEXTS[0]).cached_tokens == 64
    assert engine.begin(TEXTS[0], reuse=False).cached_tokens == 0


def test_operations_are_timed_when_asked(engine: Engine) -> None:
    logits_of(engine, TEXTS[3], [5], False)
    assert set(engine.operation_seconds().values()) == {0.0}
    engine.time_operations(True)
    logits_of(engine, TEXTS[3], [5], False)
    seconds = engine.operation_seconds()
    assert seconds["linear"] > 0
    assert seconds["attention"] > 0
    engine.time_operations(False)
    logits_of(engine, TEXTS[3], [5], False)
    assert engine.operation_seconds() == seconds
