"""The estimate of an evaluation: what it counts, and that it grows with what it counts."""

import pytest

from crumb.embedded import MODELS
from crumb.evaluation import walks
from crumb.evaluation.execution import Execution, ExecutorKind
from crumb.fitting import evaluation_cost
from crumb.fitting.evaluation_cost import estimate_evaluation
from crumb.run import lanes as lanes_module
from crumb.run import model as model_module
from crumb.run.model import open_model
from crumb.run.program import plan_engine

ARRAY = Execution(ExecutorKind.ARRAY)


@pytest.fixture
def model():
    return open_model(str(MODELS["novella-7m"]))


@pytest.mark.parametrize("execution", [Execution(), ARRAY])
def test_time_is_the_work_of_all_models_over_the_measured_rate(model, execution, monkeypatch):
    monkeypatch.setattr(evaluation_cost, "measured_rate", lambda: 1e9)

    def seconds(models, windows):
        return estimate_evaluation([model] * models, (windows, 512), execution).seconds

    once = seconds(1, 10)
    # Twice the matrix products of 6.3 M block weights and 1 M of the head, some attention, over
    # at most 1.4 times the rate.
    assert once > 2 * 2 * model.plan.parameters() * 5120 / 1e9 / 1.4
    assert seconds(2, 10) == pytest.approx(2 * once)
    assert seconds(1, 20) == pytest.approx(2 * once)


def test_native_memory_is_weights_and_lanes_by_the_engines_own_plan(model, monkeypatch):
    settings = walks.engine_settings(Execution(), 4096, 512)
    plan = plan_engine(model.checkpoint, settings)
    lane = plan.total_bytes - plan.weights_bytes
    logits = 2 * 4 * 256 * 4096
    fixed = evaluation_cost.FIXED_BYTES
    for processors, windows, lanes in ((1, 9, 1), (3, 9, 3), (3, 2, 2)):
        monkeypatch.setattr(lanes_module, "processors", lambda count=processors: count)
        found = estimate_evaluation([model], (windows, 512)).memory_bytes
        assert found == fixed + plan.weights_bytes + lanes * (lane + logits)
    monkeypatch.setattr(lanes_module, "LANES_BYTES", lane)  # room for no second lane
    found = estimate_evaluation([model], (9, 512)).memory_bytes
    assert found == fixed + plan.weights_bytes + lane + logits


def test_array_memory_counts_every_models_weights_and_one_chunk_of_hidden_states(model):
    one = estimate_evaluation([model], (8, 512), ARRAY).memory_bytes
    two = estimate_evaluation([model, model], (8, 512), ARRAY).memory_bytes
    assert two - one == 4 * model.plan.parameters() + 4 * 8 * 512 * 256
    # Windows beyond a chunk of 16384 tokens cost time, not memory.
    many = estimate_evaluation([model], (32, 512), ARRAY).memory_bytes
    assert estimate_evaluation([model], (3200, 512), ARRAY).memory_bytes == many


def test_a_model_too_large_to_keep_counts_its_largest_stage(model, monkeypatch):
    whole = estimate_evaluation([model], (8, 512), ARRAY).memory_bytes
    monkeypatch.setattr(evaluation_cost, "KEPT_BYTES", 1)
    streamed = estimate_evaluation([model], (8, 512), ARRAY).memory_bytes
    # The embedding, 4096 x 256, and the head with its norm are the largest stages.
    assert whole - streamed == 4 * (model.plan.parameters() - 4096 * 256 - 256)
    assert model_module.KEPT_BYTES > 1
