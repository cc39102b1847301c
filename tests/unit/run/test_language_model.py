"""LanguageModel: what `crumb.load` returns, from one thread and from many.

In: the tiny checkpoint and the embedded model. Out: generations, scores, embeddings, refusals.
"""

from __future__ import annotations

import json
import shutil
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import run_process

import crumb
from crumb.errors import CrumbError, UsageError
from crumb.kernels.engine import PAGE_TOKENS
from crumb.requests.generate_request import Sampling
from crumb.requests.reading_request import ScoreRequest
from crumb.run.language_model import LanguageModel
from crumb.run.model import open_model

PROMPTS = ["The old man looked at the sea and", "Once", "It was a dark night. " * 6, "She said"]


@pytest.fixture(scope="module")
def model() -> Iterator[LanguageModel]:
    """The embedded model, with room for four."""
    with crumb.load("novella-7m", context_tokens=256, sequences=4, threads=2) as model:
        yield model


def test_four_threads_at_once_get_the_texts_they_get_alone(model: LanguageModel) -> None:
    sampling = Sampling(temperature=0.8, seed=3)

    def text(prompt: str) -> str:
        return model.generate(prompt, max_tokens=24, sampling=sampling).text

    alone = [text(prompt) for prompt in PROMPTS]
    found: dict[int, list[str]] = {}

    def work(index: int) -> None:
        found[index] = [text(PROMPTS[index]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {index: [alone[index]] * 3 for index in range(4)}
    assert len(set(alone)) == 4
    assert model.engine._pages.available == model.engine._pages.count


def test_a_score_from_a_token_on_is_the_end_of_the_whole_score(model: LanguageModel) -> None:
    tokens = tuple(model.tokenizer.encode("the sea was calm and the wind was low " * 5))
    whole = model.submit(ScoreRequest(tokens, top=2)).result().tokens
    for first in (1, 2, PAGE_TOKENS, PAGE_TOKENS + 1, 2 * PAGE_TOKENS, len(tokens) - 1):
        for _ in range(2):  # the second time what comes before is in the cache
            score = model.submit(ScoreRequest(tokens, top=2, first=first)).result()
            assert score.tokens[first:] == whole[first:]
            assert all(each.logprob is None for each in score.tokens[:first])
            assert [each.token for each in score.tokens] == list(tokens)
    for first in (0, len(tokens), "1.5"):
        with pytest.raises(UsageError, match="first"):
            model.submit(ScoreRequest(tokens, first=first))  # type: ignore[arg-type]


def test_a_score_is_the_log_probability_of_the_array_executor(model: LanguageModel) -> None:
    text = "The old man looked at the sea and was not afraid of it."
    exact = open_model("novella-7m")
    tokens = exact.tokenizer.encode(text)
    logits = exact.logits(np.asarray([tokens]))[0].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = logprobs[np.arange(len(tokens) - 1), tokens[1:]]
    (score,) = model.score([text])
    found = [each.logprob for each in score.tokens]
    assert found[0] is None
    # The weights are f16 and multiply exactly; an f16 cache rounds keys and values to 2^-11, and
    # logits of up to 20 follow by some such parts.
    np.testing.assert_allclose(found[1:], expected, rtol=0, atol=20 * 2**-11)
    assert score.logprob == pytest.approx(sum(found[1:]))
    assert score.perplexity == pytest.approx(np.exp(-score.logprob / (len(tokens) - 1)))


def test_embeddings_have_length_one_and_do_not_depend_on_chunks(model: LanguageModel) -> None:
    long, same, other = model.embed(["The sea was calm. " * 12, "The sea was calm. " * 12, "No"])
    assert long.tokens > model.engine.logits_rows
    np.testing.assert_array_equal(long.vector, same.vector)
    assert np.linalg.norm(long.vector) == pytest.approx(1, abs=1e-6)
    assert float(long.vector @ other.vector) < 0.99


def test_one_prompt_gives_one_generation_and_a_list_gives_a_list(model: LanguageModel) -> None:
    one = model.generate("Once", max_tokens=5)
    several = model.generate(["Once", "She said"], max_tokens=5)
    assert several[0].tokens == one.tokens
    assert len(several) == 2
    tokens = model.tokenizer.encode("Once")
    assert model.generate(tokens, max_tokens=5).tokens == one.tokens
    streamed = "".join(piece.text for piece in model.stream("Once", max_tokens=5))
    assert streamed == one.text
    assert one.peak_memory_bytes > 10**7


def test_a_closed_model_says_so_and_may_be_closed_again(float_tiny: Path) -> None:
    model = crumb.load(float_tiny, threads=2)
    stream = model.stream("abc", max_tokens=200, ignore_end=True)
    next(stream)
    model.close()
    model.close()
    assert list(stream)[-1].finish_reason == "cancelled"
    for call in (
        lambda: model.generate("abc"),
        lambda: model.score(["abc"]),
        lambda: model.embed(["abc"]),
        lambda: model.memory,
    ):
        with pytest.raises(UsageError, match="this model is closed"):
            call()


def test_leaving_the_with_closes_and_threads_end(float_tiny: Path) -> None:
    before = thread_count()
    with crumb.load(float_tiny, threads=4) as model:
        model.generate("abc", max_tokens=2)
        assert thread_count() == before + 4  # the scheduler, and three beside it
    assert thread_count() == before


def test_a_single_text_has_a_single_result(model: LanguageModel) -> None:
    text = "The sea was calm."
    tokens = model.tokenizer.encode(text)
    for one in (model.score(text), model.score(tokens), model.score(np.array(tokens))):
        assert one.tokens == model.score([text])[0].tokens
    np.testing.assert_array_equal(model.embed(text).vector, model.embed([text])[0].vector)
    np.testing.assert_array_equal(model.logits(text), model.logits(tokens))
    assert [model.generate([]), model.score([]), model.embed([])] == [[], [], []]
    several = model.generate([tokens, tokens], max_tokens=2)
    assert [each.prompt_tokens for each in several] == [len(tokens)] * 2
    for call in (model.generate, model.score, model.embed, model.logits, model.stream):
        for wrong in (b"The sea", None, 5, {"a": 1}):
            with pytest.raises(UsageError, match="a prompt is a text or"):
                call(wrong)  # type: ignore[operator]
    with crumb.load("novella-7m", context_tokens=np.int64(64), threads=np.uint8(1)) as small:
        assert small.engine.context_tokens == 64
        assert type(small.engine.settings.context_tokens) is int
    with pytest.raises(UsageError, match="top: not a number of tokens"):
        model.score(text, top=-1)


def test_a_seed_that_nobody_gave_is_told_and_gives_the_text_again(model: LanguageModel) -> None:
    made = [model.generate("Once", max_tokens=12, temperature=1.5) for _ in range(3)]
    seeds = [each.seed for each in made]
    assert None not in seeds
    assert len(set(seeds)) == len({each.tokens for each in made}) == 3
    again = model.generate("Once", max_tokens=12, temperature=1.5, seed=seeds[0])
    assert (again.tokens, again.seed) == (made[0].tokens, seeds[0])
    assert model.generate("Once", max_tokens=2).seed is None  # greedy: nothing is drawn


def test_a_text_ends_after_256_tokens_unless_something_else_is_said(float_tiny: Path) -> None:
    with crumb.load(float_tiny, threads=1, context_tokens=256) as tiny:
        asked = [tiny.generate("a", ignore_end=True, max_tokens=most) for most in (None, 3)]
        default = tiny.generate("a", ignore_end=True)
    assert [each.completion_tokens for each in asked] == [256, 3]
    assert default.completion_tokens == 256


TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, Sampling()),
        ({"temperature": 0.6, "top_p": 0.9}, Sampling(temperature=0.6, top_p=0.9)),
        ({"do_sample": True, "top_k": 20}, Sampling(temperature=1.0, top_k=20)),
        ({"do_sample": False, "temperature": 0.6}, Sampling()),
        ({"temperature": None, "eos_token_id": 2}, Sampling()),
    ],
)
def test_a_chat_is_sampled_as_the_models_own_files_say(
    content: dict[str, object] | None, expected: Sampling, float_tiny: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    shutil.copytree(float_tiny, path)
    (path / "generation_config.json").unlink(missing_ok=True)
    if content is not None:
        (path / "generation_config.json").write_text(json.dumps(content))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    with crumb.load(path, threads=1) as tiny:
        messages = [{"role": "user", "content": "Hello"}]
        request = tiny.chat_request(messages)
        assert (request.sampling, request.max_tokens) == (expected, None)
        other = tiny.chat_request(messages, temperature=0.2, max_tokens=5)
        assert other.sampling == replace(expected, temperature=0.2)
        assert tiny.chat(messages, max_tokens=5, ignore_end=True).completion_tokens == 5
        streamed = list(tiny.stream_chat(messages, max_tokens=5, ignore_end=True))
        assert sum(len(piece.tokens) for piece in streamed) == 5


def test_a_models_own_sampling_out_of_range_is_refused_by_its_file(
    float_tiny: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    shutil.copytree(float_tiny, path)
    (path / "generation_config.json").write_text('{"temperature": -2}')
    with (
        crumb.load(path, threads=1) as tiny,
        pytest.raises(UsageError, match="temperature: a sampling setting is out of range"),
    ):
        _ = tiny.chat_sampling


@pytest.mark.parametrize("measured", ["score", "prompt_logprobs"])
def test_logits_of_a_whole_text_are_never_in_memory(measured: str) -> None:
    with crumb.load("novella-7m", context_tokens=2048, threads=2) as model:
        prompt = [300 + k % 700 for k in range(1800)]
        text = model.tokenizer.decode(prompt)
        calls = {
            "score": lambda: model.score([text]),
            "prompt_logprobs": lambda: model.generate(prompt, max_tokens=1, prompt_logprobs=True),
        }
        calls[measured]()
        tracemalloc.start()
        calls[measured]()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    whole = len(prompt) * 4 * 4096
    # a row in f64 and its like while it is measured, and records of some 400 bytes a token
    assert peak < whole / 10


def test_the_memory_of_a_closed_model_goes_back_to_the_system() -> None:
    finished = run_process("novella-7m", program=CLOSED)
    assert finished.code == 0, finished.err
    taken, left = map(int, finished.out.split())
    assert taken > 20_000_000
    assert left < taken / 2


CLOSED = """
import gc, sys, crumb
from crumb.machine.memory import resident_bytes
settings = {"context_tokens": 1024, "sequences": 4, "weights": "copied"}
with crumb.load(sys.argv[1], context_tokens=64) as small:
    small.generate("a", max_tokens=1)
gc.collect()
before = resident_bytes()
model = crumb.load(sys.argv[1], **settings)
model.run([crumb.run.generation.GenerateRequest((300 + k,) * 1000, 2) for k in range(4)])
loaded = resident_bytes()
model.close()
print(loaded - before, resident_bytes() - before)
"""
"""A model whose matrices lie in memory of the process, and whose cache is full."""


def thread_count() -> int:
    """Threads of this process, native ones too."""
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"cache": "f8"}, "cache: no such kind (expected f16 or int8 or f32, found 'f8')"),
        ({"activations": "f16"}, "activations: no such kind"),
        ({"context_tokens": 0}, "context_tokens: an engine setting is out of range"),
        ({"context_tokens": 300}, "at most 256 tokens, found 300"),
        ({"sequences": 0}, "sequences: an engine setting is out of range"),
        ({"sequences": "two"}, "sequences: an engine setting is out of range"),
        ({"threads": -1}, "threads: an engine setting is out of range"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    settings: dict[str, object], text: str, float_tiny: Path
) -> None:
    with pytest.raises(CrumbError) as caught:
        crumb.load(float_tiny, **settings)  # type: ignore[arg-type]
    assert text in str(caught.value)
    assert caught.value.exit_code == 2


def test_settings_of_a_generation_that_do_not_exist_are_refused(model: LanguageModel) -> None:
    with pytest.raises(UsageError, match="no such setting of a generation"):
        model.generate("Once", max_token=3)
