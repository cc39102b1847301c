"""Scores of windows against the same figures in f64 by their definitions.

In: random logits, and models made by hand that predict what is known. Out: losses, divergences,
agreement and their places in the windows.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_checkpoint import make_tensors, write_checkpoint

from crumb.architectures.plan import Plan, Stage
from crumb.errors import UsageError
from crumb.evaluation import scores, walks
from crumb.evaluation.execution import Execution, ExecutorKind
from crumb.evaluation.report import divergence, mean_figure, perplexity
from crumb.evaluation.scores import TokenScores
from crumb.operations.embed import Embed
from crumb.run.model import Model, open_model

Floats = NDArray[np.float64]

VOCABULARY, WINDOWS, LENGTH = 61, 5, 12

RELATIVE = float(np.finfo(np.float32).eps)

score = partial(scores.score, execution=Execution(ExecutorKind.ARRAY))
"""Tables are no checkpoints that the native engine could map; test_walks.py has the native walk."""


class FakeCheckpoint:
    """As much of a checkpoint as scoring asks for."""

    def __init__(self, name: str) -> None:
        self.path = Path(name)

    def weight_bytes(self) -> int:
        return 1000


def table_model(table: NDArray[np.float32], positions: int = 4096) -> Model:
    """A model whose logits are the row of its table that the current token names."""
    rows, features = table.shape
    stages = tuple(
        Stage(name, (Embed("tokens", output, "table", rows, features),), ("tokens",), (output,))
        for name, output in (("embedding", "hidden"), ("head", "logits"))
    )
    plan = Plan("fake", features, positions, stages)
    checkpoint: Any = FakeCheckpoint("fake")
    checkpoint.plan = plan
    return Model(checkpoint, _kept={"table": table})


@pytest.fixture
def tables() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two different tables of logits."""
    generator = np.random.default_rng(3)
    first = generator.normal(0, 3, (VOCABULARY, VOCABULARY))
    second = first + generator.normal(0, 0.5, first.shape)
    return first.astype(np.float32), second.astype(np.float32)


@pytest.fixture
def tokens() -> NDArray[np.int64]:
    """Windows of random tokens."""
    return np.random.default_rng(4).integers(0, VOCABULARY, (WINDOWS, LENGTH))


def log_softmax(logits: NDArray[np.float32]) -> Floats:
    exact = logits.astype(np.float64)
    exact = exact - exact.max(axis=-1, keepdims=True)
    return exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("first_scored", [1, 2, LENGTH // 2 + 1, LENGTH - 1])
def test_losses_and_divergences_follow_their_definitions(
    first_scored: int, tables: tuple[Any, Any], tokens: NDArray[np.int64]
) -> None:
    models = [table_model(table) for table in tables]
    reference, candidate = score(models, tokens, first_scored, with_reference=True)
    before, targets = tokens[:, first_scored - 1 : -1], tokens[:, first_scored:]
    p, q = (log_softmax(table)[before] for table in tables)
    chosen = targets[..., None]
    exact_p, exact_q = (np.take_along_axis(each, chosen, -1)[..., 0] for each in (p, q))

    # Logits up to 12 and sums of 61 exponentials in f32: a few roundings of numbers near 16.
    atol = 16 * 4 * RELATIVE
    np.testing.assert_allclose(reference.loss, -exact_p, rtol=0, atol=atol)
    np.testing.assert_allclose(candidate.loss, -exact_q, rtol=0, atol=atol)
    exact = (np.exp(p) * (p - q)).sum(axis=-1)
    assert candidate.divergence is not None
    np.testing.assert_allclose(candidate.divergence, exact, rtol=0, atol=atol)
    assert candidate.agrees is not None
    np.testing.assert_array_equal(candidate.agrees, p.argmax(-1) == q.argmax(-1))
    assert candidate.probability_change is not None
    change = np.exp(exact_q) - np.exp(exact_p)
    np.testing.assert_allclose(candidate.probability_change, change, rtol=0, atol=atol)


def test_without_a_reference_there_are_losses_alone(
    tables: tuple[Any, Any], tokens: NDArray[np.int64]
) -> None:
    (alone,) = score([table_model(tables[0])], tokens, 1, with_reference=False)
    paired, _ = score([table_model(table) for table in tables], tokens, 1, with_reference=True)
    assert (alone.divergence, alone.agrees, alone.probability_change) == (None, None, None)
    np.testing.assert_array_equal(alone.loss, paired.loss)


def test_a_model_against_itself_has_moved_nowhere(
    tables: tuple[Any, Any], tokens: NDArray[np.int64]
) -> None:
    models = [table_model(tables[0]), table_model(tables[0].copy())]
    reference, same = score(models, tokens, 1, with_reference=True)
    figures = divergence(same, reference)
    assert figures.kl.value == figures.kl_max == figures.kl_median == 0.0
    assert figures.top1_agreement.value == 1.0
    assert figures.perplexity_ratio.value == 1.0
    assert figures.perplexity_ratio.standard_error == 0.0
    assert figures.probability_rms == 0.0


def test_extreme_logits_give_exact_figures_without_overflow() -> None:
    """A certain prediction costs nothing, a wrong certainty the full distance; no warning."""
    table = np.zeros((4, 4), np.float32)
    table[0, 1] = 3e4
    doubting = np.zeros((4, 4), np.float32)
    tokens = np.array([[0, 1, 3, 2], [0, 2, 0, 1]])
    sure, unsure = score([table_model(table), table_model(doubting)], tokens, 1, True)
    np.testing.assert_array_equal(sure.loss[:, 0], [0.0, 3e4])
    np.testing.assert_allclose(unsure.loss, np.log(4), rtol=2 * RELATIVE)
    assert unsure.divergence is not None
    np.testing.assert_allclose(unsure.divergence[0, 0], np.log(4), rtol=2e4 * RELATIVE)


def successor_table(step: int) -> NDArray[np.float32]:
    """Predicts with certainty that token t is followed by t + step."""
    table = np.full((VOCABULARY, VOCABULARY), -50.0, np.float32)
    table[np.arange(VOCABULARY), (np.arange(VOCABULARY) + step) % VOCABULARY] = 50.0
    return table


@pytest.mark.parametrize("first_scored", [1, 7])
def test_each_token_is_scored_by_the_position_before_it(first_scored: int) -> None:
    """Counting windows: the model that knows the next token loses nothing anywhere; one that
    knows this token, or the one after the next, loses the full 100 nats at every place."""
    tokens = (np.arange(LENGTH) + np.arange(WINDOWS)[:, None]) % VOCABULARY
    for step, loss in ((1, 0.0), (0, 100.0), (2, 100.0)):
        (found,) = score([table_model(successor_table(step))], tokens, first_scored, False)
        assert found.loss.shape == (WINDOWS, LENGTH - first_scored)
        np.testing.assert_allclose(found.loss, loss, rtol=0, atol=100 * RELATIVE)


def test_one_surprise_is_charged_to_its_own_place() -> None:
    tokens = np.tile(np.arange(LENGTH), (2, 1))
    tokens[1, 9] = 40  # a surprise, and the token after it surprises too
    (found,) = score([table_model(successor_table(1))], tokens, 4, False)
    expected = np.zeros((2, LENGTH - 4))
    expected[1, [9 - 4, 10 - 4]] = 100.0
    np.testing.assert_allclose(found.loss, expected, rtol=0, atol=100 * RELATIVE)


def test_chunks_of_windows_do_not_change_the_scores(
    tables: tuple[Any, Any], tokens: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [table_model(table) for table in tables]
    _, whole = score(models, tokens, 1, with_reference=True)
    monkeypatch.setattr(walks, "CHUNK_TOKENS", 2 * LENGTH)
    seen: list[tuple[int, int]] = []
    _, chunked = score(models, tokens, 1, True, lambda done, total: seen.append((done, total)))
    assert seen == [(2, WINDOWS), (4, WINDOWS), (5, WINDOWS)]
    for name in ("loss", "divergence", "agrees", "probability_change"):
        np.testing.assert_array_equal(getattr(chunked, name), getattr(whole, name))


def test_a_real_model_is_scored_as_its_logits_say(tmp_path: Path) -> None:
    """Stage by stage over windows gives what one pass over each window gives."""
    model = open_model(str(write_checkpoint(tmp_path / "tiny", make_tensors())))
    tokens = np.random.default_rng(0).integers(0, 256, (3, 40))
    (found,) = score([model], tokens, 21, with_reference=False)
    for window, loss in zip(tokens, found.loss, strict=True):
        exact = log_softmax(model.logits(window[None, :])[0])
        expected = -exact[np.arange(20, 39), window[21:]]
        # The batch has another shape there than here, so BLAS may order its sums otherwise.
        np.testing.assert_allclose(loss, expected, rtol=0, atol=64 * RELATIVE * 16)


def test_models_that_do_not_share_a_vocabulary_are_refused(tokens: NDArray[np.int64]) -> None:
    small = table_model(np.zeros((30, 30), np.float32))
    whole = table_model(np.zeros((VOCABULARY, VOCABULARY), np.float32))
    with pytest.raises(UsageError, match="found 61, 30"):
        score([whole, small], tokens, 1, with_reference=True)
    with pytest.raises(UsageError, match="do not share a vocabulary"):
        score([small], tokens, 1, with_reference=False)


def test_windows_beyond_the_context_are_refused(tokens: NDArray[np.int64]) -> None:
    table = np.zeros((VOCABULARY, VOCABULARY), np.float32)
    score([table_model(table, positions=LENGTH)], tokens, 1, with_reference=False)
    with pytest.raises(UsageError, match="at most 11 tokens, found 12"):
        score([table_model(table, positions=LENGTH - 1)], tokens, 1, with_reference=False)


def test_perplexity_is_the_exponential_of_the_mean_loss() -> None:
    loss = np.log(np.array([[2.0, 8.0], [4.0, 4.0], [1.0, 1.0]]))
    figure = perplexity(TokenScores(loss, None, None, None))
    mean = np.log(2 * 8 * 4 * 4) / 6
    assert figure.value == pytest.approx(np.exp(mean), rel=1e-15)
    window_means = loss.mean(axis=1)
    expected = np.exp(mean) * window_means.std(ddof=1) / np.sqrt(3)
    assert figure.standard_error == pytest.approx(expected, rel=1e-14)


def test_one_window_has_no_standard_error() -> None:
    assert mean_figure(np.ones((1, 8))).standard_error is None


def test_a_loss_beyond_every_exponential_is_infinite() -> None:
    figure = perplexity(TokenScores(np.full((2, 3), 1e4), None, None, None))
    assert figure.value == np.inf


def test_the_standard_error_is_that_of_repeated_draws() -> None:
    """Windows of correlated tokens: the error predicted from one draw is the spread of many."""
    generator = np.random.default_rng(0)

    def draw() -> Floats:
        return generator.normal(2, 0.3, (40, 1)) + generator.normal(0, 1, (40, 25))

    figures = [mean_figure(draw()) for _ in range(2000)]
    spread = np.std([figure.value for figure in figures])
    predicted = np.mean([figure.standard_error for figure in figures])
    # The spread of 2000 draws is itself known to 1/sqrt(2 * 2000), 1.6 %; three times that.
    assert predicted == pytest.approx(spread, rel=0.05)
    token_wise = np.sqrt((0.3**2 + 1) / 1000)
    assert predicted > 1.5 * token_wise


def test_pairing_makes_the_error_of_the_ratio_small() -> None:
    """Hard windows are hard for both models; only what differs is left in the ratio."""
    generator = np.random.default_rng(1)
    hard = generator.normal(3, 1, (30, 1)) + generator.normal(0, 1, (30, 50))
    reference = TokenScores(hard, None, None, None)
    nothing = np.zeros_like(hard)
    moved = hard + generator.normal(0.02, 0.1, hard.shape)
    candidate = TokenScores(moved, nothing, nothing == 0, nothing)
    ratio = divergence(candidate, reference).perplexity_ratio
    assert ratio.value == pytest.approx(perplexity(candidate).value / perplexity(reference).value)
    errors = [
        perplexity(each).standard_error / perplexity(each).value for each in (candidate, reference)
    ]
    unpaired = ratio.value * np.hypot(*errors)
    assert ratio.standard_error is not None
    assert ratio.standard_error < unpaired / 20


def test_divergence_figures_are_quantiles_and_means() -> None:
    values = np.arange(1, 1001, dtype=np.float64).reshape(4, 250) / 1000
    agrees = np.arange(1000).reshape(4, 250) % 4 != 0
    change = np.where(agrees, 0.3, -0.4)
    zeros = np.zeros_like(values)
    figures = divergence(
        TokenScores(zeros, values, agrees, change), TokenScores(zeros, None, None, None)
    )
    assert figures.kl.value == pytest.approx(0.5005)
    assert figures.kl_median == pytest.approx(0.5005)
    assert figures.kl_99 == pytest.approx(0.99001)
    assert figures.kl_99_9 == pytest.approx(0.999001)
    assert figures.kl_max == 1.0
    assert figures.top1_agreement.value == pytest.approx(0.75)
    assert figures.probability_rms == pytest.approx(np.sqrt(0.75 * 0.09 + 0.25 * 0.16))
