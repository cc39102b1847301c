"""Evaluating models by name: which windows, which figures, what travels into the record.

In: tiny checkpoints and the embedded excerpt. Out: Evaluations.
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path

import pytest
from tiny_checkpoint import make_tensors, write_checkpoint

from crumb import Cost, Progress, evaluate
from crumb.errors import UsageError
from crumb.evaluation.comparison import evaluate_models
from crumb.evaluation.execution import Execution
from crumb.run.memory_plan import ActivationKind
from crumb.run.model import open_model
from crumb.texts.hub_texts import Use
from crumb.texts.sources import read_text
from crumb.texts.windows import cut_windows

TEXT = "excerpt-evaluation"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A tiny checkpoint."""
    return write_checkpoint(tmp_path / "tiny")


def test_an_evaluation_says_what_was_measured_on_what(tiny: Path) -> None:
    found = evaluate(str(tiny), text=TEXT, window_tokens=64, limit_windows=3)
    assert found.model == str(tiny)
    assert found.reference is None
    assert found.divergence is None
    assert (found.text, found.protocol) == (TEXT, "gptq")
    assert (
        found.text_sha256
        == hashlib.sha256(read_text(TEXT, Use.EVALUATION).text.encode()).hexdigest()
    )
    assert (found.windows, found.window_tokens, found.scored_tokens) == (3, 64, 3 * 63)
    file_bytes = (tiny / "model.safetensors").stat().st_size
    assert found.file_bytes == file_bytes
    parameters = sum(array.size for array in make_tensors().values())
    assert found.bits_per_weight == 8 * file_bytes / parameters
    # Random weights know nothing: their loss is near that of a uniform guess among 300 tokens.
    assert 150 < found.perplexity.value < 1500


def test_bits_per_byte_are_the_losses_over_the_bytes_that_were_scored(tiny: Path) -> None:
    found = evaluate(str(tiny), text=TEXT, window_tokens=64, limit_windows=3)
    tokenizer = open_model(str(tiny)).tokenizer
    windows = cut_windows(read_text(TEXT, Use.EVALUATION), tokenizer.encode, length=64, limit=3)
    size = sum(len(tokenizer.decode(row[1:].tolist()).encode()) for row in windows.tokens)
    bits = found.scored_tokens * math.log2(found.perplexity.value)
    assert found.bits_per_byte == pytest.approx(bits / size)


def test_a_model_against_itself_by_name_has_moved_nowhere(tiny: Path) -> None:
    found = evaluate(str(tiny), str(tiny), text=TEXT, window_tokens=64, limit_windows=3)
    assert found.divergence is not None
    assert found.divergence.kl_max == 0.0
    assert found.divergence.top1_agreement.value == 1.0
    assert found.divergence.perplexity_ratio.value == 1.0
    assert found.reference == str(tiny)


def test_the_reference_does_not_change_the_models_own_figures(tiny: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", make_tensors(seed=1))
    alone = evaluate(str(tiny), text=TEXT, window_tokens=64, limit_windows=3)
    paired = evaluate(str(tiny), str(other), text=TEXT, window_tokens=64, limit_windows=3)
    against = evaluate(str(other), text=TEXT, window_tokens=64, limit_windows=3)
    assert paired.perplexity == alone.perplexity
    assert paired.divergence is not None
    ratio = alone.perplexity.value / against.perplexity.value
    # Both are exponentials of f64 means of the same f32 losses.
    assert paired.divergence.perplexity_ratio.value == pytest.approx(ratio, rel=1e-12)
    assert paired.divergence.kl.value > 0.01


def test_models_come_back_in_order_reference_first(tmp_path: Path) -> None:
    names = ["reference", "first", "second"]
    models = [
        open_model(str(write_checkpoint(tmp_path / name, make_tensors(seed=seed))))
        for seed, name in enumerate(names)
    ]
    windows = cut_windows(
        read_text(TEXT, Use.EVALUATION), models[0].tokenizer.encode, length=64, limit=2
    )
    found = evaluate_models(models[1:], models[0], windows)
    assert [Path(each.model).name for each in found] == names
    assert found[0].divergence is None
    assert found[0].reference is None
    assert [each.reference for each in found[1:]] == [str(tmp_path / "reference")] * 2
    assert [each.model for each in evaluate_models(models[1:], None, windows)] == [
        str(tmp_path / name) for name in names[1:]
    ]


def test_the_protocols_score_other_tokens_of_the_same_text(tiny: Path) -> None:
    figures = {
        protocol: evaluate(
            str(tiny), text=TEXT, protocol=protocol, window_tokens=64, limit_windows=3
        )
        for protocol in ("gptq", "llama.cpp")
    }
    assert figures["gptq"].scored_tokens == 3 * 63
    assert figures["llama.cpp"].scored_tokens == 3 * 31
    assert figures["gptq"].perplexity.value != figures["llama.cpp"].perplexity.value


def test_progress_counts_windows_up_to_all(tiny: Path) -> None:
    seen: list[Progress] = []
    costs: list[Cost] = []

    def measure(executor: str) -> list[float]:
        seen.clear()
        evaluate(
            tiny,
            text=TEXT,
            window_tokens=200,
            limit_windows=90,
            executor=executor,
            progress=seen.append,
            cost=costs.append,
        )
        return [round(90 * each.share) for each in seen]

    assert measure("native") == list(range(1, 91))
    assert seen[-1].doing == "90 of 90 windows"
    assert measure("array") == [81, 90]  # 81 windows of 200 tokens are a chunk
    assert len(costs) == 2
    assert min(each.memory_bytes for each in costs) > 0


def test_an_evaluation_says_what_it_ran_on(tiny: Path) -> None:
    def ran(**chosen: str) -> tuple[str, str, str]:
        found = evaluate(str(tiny), text=TEXT, window_tokens=64, limit_windows=1, **chosen)
        assert found.as_dict()["executor"] == found.executor
        return found.executor, found.activations, found.cache

    assert ran() == ("native", "f32", "f32")
    assert ran(activations="int8") == ("native", "int8", "f16")
    assert ran(executor="array") == ("array", "f32", "f32")


def test_a_reference_is_run_exactly_whatever_the_models_activations(tiny: Path) -> None:
    windows = cut_windows(
        read_text(TEXT, Use.EVALUATION),
        open_model(str(tiny)).tokenizer.encode,
        length=64,
        limit=2,
    )
    execution = Execution(activations=ActivationKind.INT8)
    models = [open_model(str(tiny)) for _ in range(2)]
    reference, ran = evaluate_models(models[1:], models[0], windows, execution=execution)
    (exact,) = evaluate_models(models[1:], None, windows)
    assert (reference.activations, reference.cache) == ("f32", "f32")
    assert reference.perplexity == exact.perplexity
    assert (ran.activations, ran.cache) == ("int8", "f16")
    assert ran.divergence is not None
    assert ran.divergence.kl.value > 0  # this model is not quantized: what is left is the cache


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        ({"activations": "int4"}, "activations: no such kind (expected int8 or f32"),
        ({"executor": "gpu"}, "executor: no such kind (expected native or array"),
        ({"executor": "array", "activations": "int8"}, "Use the native one"),
    ],
)
def test_executions_that_cannot_be_are_refused(chosen: dict[str, str], text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(text)):
        evaluate("there is no such model", **chosen)
