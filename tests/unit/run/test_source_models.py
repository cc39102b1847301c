"""LanguageModel on models that read a text before they write: generate, stream, chat, score.

In: a tiny T5 with a Unigram tokenizer. Out: what the array executor makes of the same tokens; the
same texts in any company; a line for what cannot be.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_models import SENTINELS, write_source_model

import crumb
from crumb.errors import CheckpointError, ContextExceeded, UsageError
from crumb.requests.generate_request import make_request
from crumb.run.generation import FinishReason
from crumb.run.language_model import LanguageModel
from crumb.run.model import open_model
from crumb.run.sampling import log_softmax

TEXTS = ["The sea was calm.", "Once upon a time there was a captain", "no", "What is it? " * 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source_model(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[LanguageModel]:
    with crumb.load(folder, sequences=3, cache="f32", activations="f32", threads=1) as loaded:
        yield loaded


def oracle(folder: Path, text: str, tokens: list[int]) -> Any:
    """Log-probabilities after each of some tokens, by the array executor: (tokens, vocabulary)."""
    opened = open_model(str(folder))
    source = np.asarray([opened.tokenizer.encode(text)])
    assert source[0, -1] == 1
    return log_softmax(opened.logits(np.asarray([tokens]), {"source": source})[0])


def test_a_generation_is_the_greedy_text_of_the_array_executor(
    model: LanguageModel, folder: Path
) -> None:
    for text in TEXTS[:2]:
        generation = model.generate(text, max_tokens=12)
        assert len(generation.tokens) == 12 or generation.finish_reason is FinishReason.STOP
        assert generation.prompt_tokens == len(model.tokenizer.encode(text))
        rows = oracle(folder, text, [0, *generation.tokens])
        chosen = [int(row.argmax()) for row in rows[:-1]]
        assert chosen == list(generation.tokens)


def test_texts_are_the_same_in_company_alone_and_streamed(model: LanguageModel) -> None:
    asked = [make_request(text, max_tokens=9 + 5 * k) for k, text in enumerate(TEXTS * 3)]
    together = [each.tokens for each in model.run(asked)]
    assert len({*together}) > 2
    alone = [model.generate(each.prompt, max_tokens=each.max_tokens).tokens for each in asked[:4]]
    assert together[:4] == alone
    pieces = list(model.stream(TEXTS[1], max_tokens=14))
    assert [token for piece in pieces for token in piece.tokens] == list(together[1])


def test_a_chat_without_a_template_reads_its_messages_as_a_text(model: LanguageModel) -> None:
    messages = [
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": TEXTS[0]},
    ]
    answer = model.chat(messages, max_tokens=8)
    assert answer.tokens == model.generate(f"Answer.\n{TEXTS[0]}", max_tokens=8).tokens
    streamed = "".join(piece.text for piece in model.stream_chat(messages, max_tokens=8))
    assert streamed == answer.text


def test_a_score_is_the_log_probability_of_the_target_and_its_end(
    model: LanguageModel, folder: Path
) -> None:
    text, target = TEXTS[0], "It was calm"
    score = model.score(text, target, top=2)
    tokens = model.tokenizer.encode(target)
    assert [each.token for each in score.tokens] == [0, *tokens]
    assert tokens[-1] == 1
    rows = oracle(folder, text, [0, *tokens])
    expected = [float(row[token]) for row, token in zip(rows[:-1], tokens, strict=True)]
    measured = [each.logprob for each in score.tokens]
    assert measured[0] is None
    np.testing.assert_allclose(np.asarray(measured[1:], float), expected, atol=1e-4)
    assert score.logprob == pytest.approx(sum(expected), abs=1e-3)
    pairs = model.score([text, TEXTS[1]], [target, tokens])
    assert pairs[0].logprob == pytest.approx(score.logprob, abs=1e-6)
    assert pairs[1].logprob != pairs[0].logprob


def test_a_model_without_an_encoder_scores_a_target_behind_a_text() -> None:
    with crumb.load(Path(crumb.__file__).parent / "embedded" / "novella-7m", threads=1) as decoder:
        whole = decoder.score("The sea was calm.")
        count = len(decoder.tokenizer.encode("The sea"))
        pair = decoder.score("The sea", " was calm.")
        if [each.token for each in whole.tokens] == [each.token for each in pair.tokens]:
            rest = sum(each.logprob or 0.0 for each in whole.tokens[count:])
            assert pair.logprob == pytest.approx(rest, abs=1e-5)
        assert all(each.logprob is None for each in pair.tokens[:count])


def test_a_cancelled_request_gives_its_memory_back(model: LanguageModel) -> None:
    engine = model.engine
    assert engine.memories is not None
    before = engine.memories.pool.available
    cancelled = threading.Event()

    def stop(index: int, piece: Any) -> None:
        del index, piece
        cancelled.set()

    generations = model.run(
        [make_request(text, max_tokens=100, ignore_end=True) for text in TEXTS], stop, cancelled
    )
    assert {each.finish_reason for each in generations} == {FinishReason.CANCELLED}
    assert engine.memories.pool.available == before
    assert engine.cache_use == 0.0


def test_more_requests_than_there_is_memory_for_wait_for_it(folder: Path) -> None:
    with crumb.load(folder, sequences=1, context_tokens=64, threads=1) as small:
        asked = [make_request(TEXTS[1], max_tokens=5) for _ in range(7)]
        assert len({each.tokens for each in small.run(asked)}) == 1


WRONG = {
    "the text to read is empty": lambda model: model.generate(""),
    "the text to read is empty.": lambda model: model.generate("   "),
    "the text to read is empty ": lambda model: model.chat([{"role": "user", "content": ""}]),
    "the target is empty": lambda model: model.score("a text", []),
    r"the text is longer than the context.*at most 160": lambda model: model.score("a", [5] * 160),
    r"the text to read is longer.*at most 160 tokens, found 161.*n_positions": (
        lambda model: model.generate([5] * 161)
    ),
    "scores what it writes": lambda model: model.score("a text"),
    "prompt_logprobs: .*scores what it writes": (
        lambda model: model.generate("a text", prompt_logprobs=True)
    ),
    "no vector": lambda model: model.embed("a text"),
    "no logits": lambda model: model.logits("a text"),
    "each text has a target of its own.*a list of 2": (
        lambda model: model.score(["a", "b"], ["c"])
    ),
}


@pytest.mark.parametrize("told", WRONG)
def test_what_cannot_be_asked_is_refused_in_one_line(told: str, model: LanguageModel) -> None:
    with pytest.raises((UsageError, ContextExceeded), match=told.strip(" .")) as caught:
        WRONG[told](model)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_text_beyond_the_context_asks_for_a_larger_one(folder: Path) -> None:
    with (
        crumb.load(folder, context_tokens=32, threads=1) as narrow,
        pytest.raises(ContextExceeded, match=r"at most 32 tokens, found 33.*a larger context"),
    ):
        narrow.generate([5] * 33)


def test_more_positions_are_a_number_in_the_configuration(tmp_path: Path) -> None:
    """Distances are counted in buckets: the first tokens of an answer are the same."""
    asked = {"max_tokens": 20, "ignore_end": True}
    answers = []
    for positions in (80, 400):
        folder = write_source_model(tmp_path / f"{positions}", n_positions=positions)
        with crumb.load(folder, threads=1) as model:
            answers.append(model.generate(TEXTS[3], **asked).tokens)
            if positions == 400:
                assert len(model.generate([5] * 390, **asked).tokens) == 20
    assert answers[0] == answers[1]


@pytest.mark.parametrize("token", [..., None, -1, "0", 10**6])
def test_a_model_that_does_not_say_how_answers_begin_is_refused(token: Any, tmp_path: Path) -> None:
    folder = write_source_model(tmp_path, decoder_start_token_id=token)
    with pytest.raises(
        CheckpointError, match=r"config.json.*decoder_start_token_id from 0"
    ) as caught:
        crumb.load(folder)
    assert "\n" not in str(caught.value)


def test_sentinels_are_tokens_of_their_own_and_hidden_in_texts(model: LanguageModel) -> None:
    tokens = model.tokenizer.encode(f"a {SENTINELS[-1]} sea")
    assert model.tokenizer.numbers(SENTINELS[-1:]) <= set(tokens)
    assert SENTINELS[-1] not in model.tokenizer.decode(tokens)
