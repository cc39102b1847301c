"""The native engine on families that read a source: what the array executor gives, always the same.

In: the tiny models; sources and texts of many lengths. Out: logits of both executors, close by the
tolerance that two f32 runs have; the same bits however steps, chunks, threads and company differ.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_native import exact_settings
from tiny_models import ENCODER_DECODERS, make_sources, make_tokens, tolerance, write_model

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import ContextExceeded, DoesNotFit, UsageError
from crumb.kernels.engine import PAGE_TOKENS
from crumb.run.engine import Engine, EngineSequence, Rows, StepPart
from crumb.run.memory_plan import ActivationKind, CacheKind, EngineSettings
from crumb.run.model import Model

Floats = NDArray[np.float32]


@cache
def texts(variant: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What is written, and what is read."""
    configuration = ENCODER_DECODERS[variant]
    return make_tokens(configuration), make_sources(configuration)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_model(tmp_path_factory.mktemp("t5"), ENCODER_DECODERS["t5"]))


def logits_of(
    engine: Engine, source: NDArray[np.int64], tokens: NDArray[np.int64], cuts: Any = ()
) -> Floats:
    """Logits after every token, the text cut at these places."""
    sequence = engine.begin(tokens.tolist(), source=source.tolist())
    parts = np.split(tokens, cuts)
    rows = [engine.run([StepPart(sequence, part.tolist(), Rows.ALL)]).copy() for part in parts]
    engine.end(sequence)
    return np.concatenate(rows)


@pytest.mark.parametrize("variant", ENCODER_DECODERS)
def test_both_executors_give_the_logits_of_every_variant(variant: str, tmp_path: Path) -> None:
    model = Model(open_checkpoint(write_model(tmp_path, ENCODER_DECODERS[variant])))
    tokens, sources = texts(variant)
    expected = model.logits(tokens, {"source": sources})
    engine = Engine(model.checkpoint, exact_settings(tokens))
    for row in range(2):
        whole = logits_of(engine, sources[row], tokens[row])
        allowed = tolerance(model.plan, expected)
        np.testing.assert_allclose(whole, expected[row], rtol=0, atol=allowed)
        chunked = logits_of(engine, sources[row], tokens[row], (1, 16, 31, 32, 100, 149))
        np.testing.assert_array_equal(chunked, whole)


SETTINGS = EngineSettings(
    context_tokens=150, sequences=6, step_tokens=64, logits_rows=64, threads=1
)


def together(engine: Engine, lengths: list[int], texts: list[int]) -> list[Floats]:
    """Sources of these lengths and texts of those, all at once, one token of each after another."""
    tokens, sources = (each.ravel() for each in make_pairs())
    sequences = [
        engine.begin([0], source=sources[length : 2 * length].tolist()) for length in lengths
    ]
    rows: list[list[Floats]] = [[] for _ in lengths]
    for place in range(max(texts)):
        at_work = [index for index, count in enumerate(texts) if place < count]
        parts = [StepPart(sequences[each], [int(tokens[7 * each + place])]) for each in at_work]
        logits = engine.run(parts)
        for index, row in zip(at_work, logits, strict=True):
            rows[index].append(row.copy())
    for each in sequences:
        engine.end(each)
    return [np.stack(each) for each in rows]


def make_pairs() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return texts("t5")


@pytest.mark.parametrize("kind", CacheKind)
def test_company_and_threads_change_no_bit(kind: CacheKind, t5: Checkpoint) -> None:
    lengths, counts = [1, 16, 17, 63, 64, 130], [3, 9, 1, 5, 7, 20]
    settings = replace(SETTINGS, cache=kind)
    expected = together(Engine(t5, settings), lengths, counts)
    other = Engine(t5, replace(settings, threads=3, step_tokens=200))
    for one, company in zip(expected, together(other, lengths, counts), strict=True):
        np.testing.assert_array_equal(one, company)
    tokens, sources = (each.ravel() for each in make_pairs())
    for index, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        alone = logits_of(
            other,
            sources[length : 2 * length],
            tokens[7 * index : 7 * index + count],
            range(1, count, 2),
        )
        np.testing.assert_array_equal(alone, expected[index])


def test_int8_activations_and_caches_stay_near_f32(t5: Checkpoint) -> None:
    tokens, sources = (each[0] for each in make_pairs())
    exact = logits_of(Engine(t5, exact_settings(tokens[None])), sources, tokens)
    for cache_kind in (CacheKind.F16, CacheKind.INT8):
        settings = replace(exact_settings(tokens[None]), cache=cache_kind)
        ran = logits_of(Engine(t5, settings), sources, tokens)
        error = np.linalg.norm(ran - exact) / np.linalg.norm(exact)
        assert 0 < error < {CacheKind.F16: 0.01, CacheKind.INT8: 0.1}[cache_kind]


def test_a_sequence_that_ends_gives_its_memory_back(t5: Checkpoint) -> None:
    engine = Engine(t5, replace(SETTINGS, sequences=1))
    source = make_pairs()[1][0].tolist()
    assert engine.has_room_for(source)
    first = engine.begin([0], source=source)
    assert not engine.has_room_for(source)
    with pytest.raises(DoesNotFit):
        engine.begin([0], source=source)
    engine.end(first)
    assert engine.has_room_for(source)
    expected = logits_of(Engine(t5, replace(SETTINGS, sequences=1)), *_pair())
    np.testing.assert_array_equal(logits_of(engine, *_pair()), expected)


def _pair() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    tokens, sources = make_pairs()
    return sources[1], tokens[1, :5]


def test_a_source_is_read_once(t5: Checkpoint) -> None:
    engine = Engine(t5, SETTINGS)
    engine.time_operations(True)
    sequence = engine.begin([0], source=_pair()[0].tolist())
    engine.run([StepPart(sequence, [0])])
    assert engine.operation_seconds()["remember"] > 0
    engine.time_operations(False)
    engine.time_operations(True)
    before = engine.operation_seconds()["remember"]
    engine.run([StepPart(sequence, [5])])
    assert engine.operation_seconds()["remember"] == before


def test_the_memory_plan_counts_what_is_read_and_kept(t5: Checkpoint) -> None:
    plan = t5.plan
    heads, dim, pages = 3, 10, -(-150 // PAGE_TOKENS)
    head_bytes = 16 * (dim + 16) * 2  # keys, values padded to whole vectors, in f16
    kept = 3 * 2 * heads * -(-head_bytes // 64) * 64  # each decoder block's own, and its memory
    passing = heads * -(-16 * (dim + 16) * 4 // 64) * 64
    one, six = (
        Engine(t5, replace(SETTINGS, sequences=count)).memory.cache_bytes for count in (1, 6)
    )
    assert one == pages * kept + pages * passing
    assert six - one == 5 * pages * kept + 6 * passing
    assert set(plan.memory) == {
        f"memory.{block}.{part}" for block in range(3) for part in ("key", "value")
    }


def test_what_cannot_be_read_is_refused_in_one_line(t5: Checkpoint) -> None:
    engine = Engine(t5, SETTINGS)
    with pytest.raises(UsageError, match="there is no text to read"):
        engine.begin([0])
    with pytest.raises(
        ContextExceeded, match=r"the text to read is longer.*at most 150.*found 151"
    ):
        engine.begin([0], source=[5] * 151)
    with pytest.raises(UsageError, match="not in the model's vocabulary"):
        engine.begin([0], source=[97])
    with pytest.raises(UsageError, match="another engine"):
        engine.run([StepPart(EngineSequence(), [0])])
    with pytest.raises(UsageError, match="do not outlive"):
        Engine(t5, replace(SETTINGS, cache_dir=Path("nowhere")))


def test_streams_beyond_half_precision_are_what_f32_makes_of_them(tmp_path: Path) -> None:
    """T5 was trained in bfloat16: sums of its MLPs exceed 65504."""
    from safetensors.numpy import load_file, save_file

    folder = write_model(tmp_path, ENCODER_DECODERS["t5-gated"])
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith("wo.weight"):
            weights[name] = weights[name] * 1e5
    save_file(weights, folder / "model.safetensors")
    model = Model(open_checkpoint(folder))
    tokens, sources = texts("t5-gated")
    expected = model.logits(tokens[:1], {"source": sources[:1]})[0]
    for activations, bound in ((ActivationKind.F32, 1e-4), (ActivationKind.INT8, 0.1)):
        settings = replace(exact_settings(tokens), cache=CacheKind.F16, activations=activations)
        ran = logits_of(Engine(model.checkpoint, settings), sources[0], tokens[0])
        error = np.linalg.norm(ran - expected) / np.linalg.norm(expected)
        assert error < max(bound, 0.02)
