"""LanguageModel on models that keep a state: generate, stream, score, guesses, turns, memory.

In: a tiny RWKV-4 with a World vocabulary. Out: what the array executor makes of the same tokens;
the same texts in any company, chunks and threads, with guesses, behind snapshots; constant memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exhaustive import exhaustive
from recurrent_models import write_recurrent_model

import crumb
from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import UsageError
from crumb.requests.generate_request import make_request
from crumb.run import states
from crumb.run.engine import Engine, Rows, StepPart
from crumb.run.generation import FinishReason
from crumb.run.language_model import LanguageModel
from crumb.run.memory_plan import ActivationKind, EngineSettings
from crumb.run.model import open_model
from crumb.run.program import plan_engine
from crumb.run.speculation import Speculation

TEXTS = ["the sea", "User: the 12 then\n\n" * 20, "世界👍", "say " * 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recurrent_model(tmp_path_factory.mktemp("rwkv"))


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots come often enough for small texts."""
    monkeypatch.setattr(states, "DISTANCE_TOKENS", 32)


def opened(folder: Path, **options: Any) -> LanguageModel:
    exact = {"activations": "f32", "threads": 1, "sequences": 3, "context_tokens": 4096}
    return crumb.load(folder, **{**exact, **options})


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[LanguageModel]:
    with opened(folder) as loaded:
        yield loaded


def test_a_generation_is_the_greedy_text_of_the_array_executor(
    model: LanguageModel, folder: Path
) -> None:
    slow = open_model(str(folder))
    for text in TEXTS[:2]:
        generation = model.generate(text, max_tokens=12, ignore_end=True)
        tokens = [*model.tokens_of(text), *generation.tokens]
        rows = slow.logits(np.asarray([tokens]))[0, -13:-1]
        assert rows.argmax(axis=-1).tolist() == list(generation.tokens)


def test_a_text_may_be_longer_than_those_the_model_was_trained_on(model: LanguageModel) -> None:
    assert model.checkpoint.configuration["context_length"] < len(model.tokens_of(TEXTS[1]))
    assert model.logits(TEXTS[1]).shape[0] == len(model.tokens_of(TEXTS[1]))


def test_texts_are_the_same_in_any_company_chunks_and_threads(
    model: LanguageModel, folder: Path
) -> None:
    asked = [make_request(text, max_tokens=9 + 5 * k) for k, text in enumerate(TEXTS * 3)]
    expected = [model.run([each])[0].tokens for each in asked]
    assert len({*expected}) > 2
    checkpoint = open_checkpoint(folder)
    for threads, step_tokens in ((1, 256), (2, 7), (3, 33)):
        settings = EngineSettings(
            context_tokens=4096,
            sequences=3,
            step_tokens=step_tokens,
            logits_rows=min(step_tokens, 16),
            activations=ActivationKind.F32,
            threads=threads,
        )
        with LanguageModel(checkpoint, settings) as other:
            assert [each.tokens for each in other.run(asked)] == expected
            pieces = list(other.stream(TEXTS[1], max_tokens=14))
        assert [token for piece in pieces for token in piece.tokens] == list(expected[1])


def logits_of(engine: Engine, tokens: list[int], cuts: list[int]) -> Any:
    """After every token, the text cut at these places."""
    sequence = engine.begin(tokens, reuse=False)
    parts = np.split(np.asarray(tokens), cuts)
    rows = [engine.run([StepPart(sequence, part.tolist(), Rows.ALL)]).copy() for part in parts]
    engine.end(sequence)
    return np.concatenate(rows)


@pytest.mark.parametrize("activations", list(ActivationKind))
def test_chunks_single_steps_and_guesses_give_the_same_bits(
    activations: ActivationKind, folder: Path
) -> None:
    settings = EngineSettings(
        context_tokens=128, step_tokens=100, logits_rows=100, activations=activations, threads=2
    )
    engine = Engine(open_checkpoint(folder), settings)
    tokens = np.random.default_rng(0).integers(0, 280, 100).tolist()
    whole = logits_of(engine, tokens, [])
    for cuts in ([1, 2, 31, 32, 33, 64], list(range(1, 100)), [96]):
        np.testing.assert_array_equal(logits_of(engine, tokens, cuts), whole)
    sequence, done = engine.begin(tokens, reuse=False), 0
    while done < len(tokens):  # guesses of which none, some or all come true
        right = min(done % 4, len(tokens) - done - 1)
        wrong = [1] * (3 - right)
        step = [*tokens[done : done + 1 + right], *wrong]
        rows = engine.run([StepPart(sequence, step, Rows.ALL, 3)])
        np.testing.assert_array_equal(rows[: 1 + right], whole[done : done + 1 + right])
        engine.cut(sequence, len(wrong))
        done += 1 + right
    assert sequence.tokens == tokens


class Eager(Speculation):
    """Guesses whatever it can, whether it pays or not."""

    def drafts_for(self, speculators: Any, rooms: Any, rows: int) -> list[list[int]]:
        drafts = []
        for each, room in zip(speculators, rooms, strict=True):
            draft = [] if each is None else each.draft(min(room, rows, 4))
            rows -= len(draft)
            drafts.append(draft)
        return drafts


def test_guesses_change_no_text(folder: Path) -> None:
    asked = [make_request(text, max_tokens=60, ignore_end=True) for text in TEXTS * 2]
    plain = [replace(each, speculate=False) for each in asked]
    with opened(folder) as model:
        expected = [each.tokens for each in model.run(plain)]
        model.scheduler.speculation = model.scheduler._composer.speculation = eager = Eager()
        assert [each.tokens for each in model.run(asked)] == expected
        assert [model.run([each])[0].tokens for each in asked] == expected
        assert 0 < eager.guesses.accepted_tokens < eager.guesses.drafted_tokens
        assert model.engine.states is not None
        assert model.engine.states.free_guesses == states.GUESSES


def test_a_conversation_goes_on_from_where_it_ended(folder: Path) -> None:
    with opened(folder) as model:
        first = model.generate(TEXTS[1], max_tokens=20, ignore_end=True)
        tokens = [*model.tokens_of(TEXTS[1]), *first.tokens]
        again = model.generate([*tokens, 5, 6], max_tokens=8)
        assert again.cached_tokens == len(tokens) - 1  # the last token was never run
        branch = [*tokens[:100], 9, 9, 9]
        other = model.generate(branch, max_tokens=8)
        assert other.cached_tokens == 96  # three times 32
        same = model.generate(TEXTS[1], max_tokens=3, ignore_end=True)
        assert same.cached_tokens == len(model.tokens_of(TEXTS[1])) - 1
        assert same.tokens == first.tokens[:3]
        for text, generation in (([*tokens, 5, 6], again), (branch, other)):
            alone = model.generate(text, max_tokens=8, prompt_logprobs=True)
            assert alone.cached_tokens == 0
            assert alone.tokens == generation.tokens


def test_memory_of_a_sequence_is_the_same_however_long_it_is(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    short, long = (
        plan_engine(checkpoint, EngineSettings(context_tokens=tokens)) for tokens in (100, 100_000)
    )
    assert short == long
    two = plan_engine(checkpoint, EngineSettings(sequences=2))
    state = 4 * short.states.floats
    assert two.cache_bytes - short.cache_bytes == state * (1 + states.SNAPSHOTS)
    engine = Engine(checkpoint, EngineSettings(context_tokens=100_000))
    assert engine._program.states.nbytes == short.cache_bytes
    assert engine.pages_of(100_000) == 0


def test_a_cancelled_request_gives_its_place_back(model: LanguageModel) -> None:
    engine, cancelled = model.engine, threading.Event()
    assert engine.states is not None
    before = engine.states.available

    def stop(index: int, piece: Any) -> None:
        del index, piece
        cancelled.set()

    asked = [make_request(text, max_tokens=100, ignore_end=True) for text in TEXTS]
    generations = model.run(asked, stop, cancelled)
    assert {each.finish_reason for each in generations} == {FinishReason.CANCELLED}
    assert engine.states.available == before
    assert engine.cache_use == 0.0


def test_more_requests_than_there_are_places_wait(folder: Path) -> None:
    with opened(folder, sequences=1, context_tokens=64) as small:
        asked = [make_request("the sea", max_tokens=5) for _ in range(2 * states.SNAPSHOTS)]
        assert len({each.tokens for each in small.run(asked)}) == 1


def test_scores_and_vectors_are_those_of_the_array_executor(
    model: LanguageModel, folder: Path
) -> None:
    tokens = model.tokens_of(TEXTS[3])
    logits = open_model(str(folder)).logits(np.asarray([tokens]))[0]
    np.testing.assert_allclose(model.logits(TEXTS[3]), logits, atol=1e-3)
    assert model.score(TEXTS[3]).tokens[1].logprob is not None
    assert np.linalg.norm(model.embed(TEXTS[3]).vector) == pytest.approx(1.0)


def test_a_state_does_not_outlive_the_process(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not outlive the process.*--cache-dir"):
        opened(folder, cache_dir=tmp_path)


def test_its_speed_is_predicted(folder: Path) -> None:
    report = crumb.fit(str(folder), memory="1 GB")
    (row,) = (each for each in report.models[0].rows if each.lies_here)
    assert (row.decode_tokens_per_second or 0) > 0


@pytest.mark.parametrize(
    "variant",
    [
        "lfm2",
        "mamba2",
        "rwkv7",
        *exhaustive("rwkv6", "bamba", "granitemoehybrid", "qwen3_next", "qwen3_5_moe_text"),
    ],
)
def test_with_attention_beside_it_texts_and_turns_are_the_same_too(
    variant: str, tmp_path: Path
) -> None:
    path = write_recurrent_model(tmp_path / variant, variant, max_position_embeddings=1024)
    asked = [make_request(text, max_tokens=40, ignore_end=True) for text in TEXTS]
    with opened(path, context_tokens=1024) as model:
        expected = [model.run([each])[0].tokens for each in asked]
    with opened(path, context_tokens=1024, threads=2) as model:
        model.scheduler.speculation = model.scheduler._composer.speculation = Eager()
        assert [each.tokens for each in model.run(asked)] == expected
        turn = [*model.tokens_of(TEXTS[1]), *expected[1], 5, 6, 7]
        again = model.generate(turn, max_tokens=8, ignore_end=True)
        assert again.cached_tokens >= len(turn) - 3 - 40 - 32
        alone = model.generate(turn, max_tokens=8, ignore_end=True, prompt_logprobs=True)
        assert (alone.cached_tokens, alone.tokens) == (0, again.tokens)
        assert model.engine.cache_use == 0.0
