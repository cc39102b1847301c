"""The estimate of an evaluation: what it counts, and that it grows with what it counts."""

import pytest

from crumb.checkpoints.huggingface import open_checkpoint
from crumb.embedded import MODELS
from crumb.fit import evaluation_cost
from crumb.fit.evaluation_cost import estimate_evaluation
from crumb.run import model as model_module


@pytest.fixture
def plan():
    return open_checkpoint(MODELS["novella-7m"]).plan


def test_time_is_the_work_of_all_models_over_the_measured_rate(plan, monkeypatch):
    monkeypatch.setattr(evaluation_cost, "measured_rate", lambda: 1e9)
    once = estimate_evaluation([plan], (10, 512)).seconds
    # Twice the matrix products of 6.3 M block weights and 1 M of the head, and some attention.
    assert once > 2 * 2 * plan.parameters() * 5120 / 1e9
    assert estimate_evaluation([plan, plan], (10, 512)).seconds == pytest.approx(2 * once)
    assert estimate_evaluation([plan], (20, 512)).seconds == pytest.approx(2 * once)


def test_memory_counts_every_models_weights_and_one_chunk_of_hidden_states(plan):
    one = estimate_evaluation([plan], (8, 512)).memory_bytes
    two = estimate_evaluation([plan, plan], (8, 512)).memory_bytes
    assert two - one == 4 * plan.parameters() + 4 * 8 * 512 * 256
    # Windows beyond a chunk of 16384 tokens cost time, not memory.
    many = estimate_evaluation([plan], (32, 512)).memory_bytes
    assert estimate_evaluation([plan], (3200, 512)).memory_bytes == many


def test_a_model_too_large_to_keep_counts_its_largest_stage(plan, monkeypatch):
    whole = estimate_evaluation([plan], (8, 512)).memory_bytes
    monkeypatch.setattr(evaluation_cost, "KEPT_BYTES", 1)
    streamed = estimate_evaluation([plan], (8, 512)).memory_bytes
    # The embedding, 4096 x 256, and the head with its norm are the largest stages.
    assert whole - streamed == 4 * (plan.parameters() - 4096 * 256 - 256)
    assert model_module.KEPT_BYTES > 1
