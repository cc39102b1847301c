"""Budgets: what they refuse, what they come to, and that what was learned once is read again.

In: the tiny model, a random text. Out: plans whose sizes are those of the files that come of them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import refusal
from tiny_models import LLAMA, write_model

from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import CrumbWarning, DoesNotFit, UsageError
from crumb.fitting.rehearsal import Rehearsal
from crumb.fitting.sensitivity import SensitivityPass, sample, token_shares
from crumb.pipeline import plan, quantize
from crumb.planning import plan_path
from crumb.requests.quantize_options import make_quantize_request
from crumb.run.backward import Backward
from crumb.run.model import open_model

WIDE = LLAMA | {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


class Written:
    """Calibration tokens."""

    def __init__(self, tokens: Any) -> None:
        self.tokens, self.rows, self.sources = tokens, tokens, ()

    def sha256(self) -> str:
        return "0"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return write_model(tmp_path_factory.mktemp("source"), WIDE)


@pytest.fixture(scope="module")
def tokens(source: Path) -> Any:
    """What the model itself writes: there the loss's gradients are those of the divergence."""
    rng = np.random.default_rng(1)
    written = rng.integers(0, 64, (24, 1))
    for _ in range(23):
        last = np.exp(log_probabilities(str(source), written)[:, -1])
        drawn = (last.cumsum(-1) < rng.random((24, 1))).sum(-1)
        written = np.concatenate([written, drawn[:, None]], axis=1)
    return written


@pytest.fixture
def asked(source: Path, tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """asked(**options): a request whose calibration is these tokens."""

    monkeypatch.setattr("crumb.pipeline.draw", lambda model, calibration: Written(tokens))
    monkeypatch.setattr("crumb.pipeline.check_draw", lambda model, calibration: None)

    def make(out: str = "out", **options: Any) -> Any:
        options = {"calibration": "embedded", "sequences": 24, "length_tokens": 24} | options
        return make_quantize_request(str(source), tmp_path / out, pack=False, **options)

    return make


def test_a_file_is_as_large_as_its_plan_and_within_the_budget(asked: Any) -> None:
    request = asked(bits_per_weight=4.5)
    result = quantize(request)
    chosen = json.loads(plan_path(request.out).read_text())
    assert result.file_bytes == chosen["file_bytes"]
    assert result.bits_per_weight == chosen["bits_per_weight"] <= 4.5
    formats = {each["tensor"]: each["format"] for each in chosen["matrices"]}
    tensors = result.manifest["tensors"]
    assert formats == {name: record["format"] for name, record in tensors.items()}
    assert len(set(formats.values())) > 1
    assert any(name.startswith("super") for name in formats.values())  # their tables are learned
    allocation = result.manifest["allocation"]
    assert allocation["expected_kl"] == chosen["expected_kl"] > 0
    assert allocation["budget"]["bits_per_weight"] == 4.5


def test_a_larger_budget_never_expects_more_loss(asked: Any) -> None:
    plans = [
        plan(asked(out=str(bits), bits_per_weight=float(bits))) for bits in np.linspace(3.4, 9, 20)
    ]
    losses = [each.expected_kl for each in plans]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 2 * losses[-1]


def test_another_budget_does_not_run_the_pass_again(
    asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(asked(bits_per_weight=4.0))

    def refuse(*_: Any) -> None:
        raise AssertionError("the losses lie beside the output")

    monkeypatch.setattr(SensitivityPass, "run", refuse)
    assert plan(asked(out="other", file_size="1MB")).file_bytes <= 1_000_000


def test_a_pass_that_was_stopped_goes_on(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    request = asked(bits_per_weight=4.0)
    whole, counted = SensitivityPass._group, []

    def stopping(self: SensitivityPass, *arguments: Any) -> Any:
        counted.append(0)
        if len(counted) == 3:
            raise KeyboardInterrupt
        return whole(self, *arguments)

    monkeypatch.setattr(SensitivityPass, "_group", stopping)
    with pytest.raises(KeyboardInterrupt):
        plan(request)
    begun = len(counted)
    again = plan(request)
    groups = 4 * WIDE["num_hidden_layers"] + 1
    assert len(counted) - begun == groups - 2  # two were finished
    shutil.rmtree(next(request.out.parent.glob("*.sensitivities-*")))
    plan_path(request.out).unlink()
    assert plan(request) == again


def test_memory_is_that_of_the_dry_run(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crumb.planning.resident_bytes", lambda: 100 << 20)
    with pytest.warns(CrumbWarning, match="float model itself is within this budget"):
        roomy = plan(asked(memory="4GiB", context_tokens=32))
    assert roomy.memory_bytes is not None
    assert {each.format for each in roomy.matrices} == {"int8-g128-fixed"}
    less = roomy.memory_bytes - 40_000
    tight = plan(asked(out="tight", memory=less, context_tokens=32))
    assert tight.memory_bytes is not None
    assert tight.memory_bytes <= less
    assert tight.expected_kl > roomy.expected_kl


def test_a_matrix_that_is_named_has_its_format(asked: Any) -> None:
    request = asked(bits_per_weight=8.0, tensor={"down_proj": "int8-g128-fixed", "k_proj": "float"})
    chosen = plan(request).formats
    assert {chosen[name].name for name in chosen if "down_proj" in name} == {"int8-g128-fixed"}
    assert not any("k_proj" in name for name in chosen)
    tensors = open_checkpoint(quantize(request).out).tensors.entries
    assert all(each.lies_as_floats for name, each in tensors.items() if "k_proj" in name)


def test_a_plan_is_read_back_and_may_be_edited(asked: Any, tmp_path: Path) -> None:
    request = asked(bits_per_weight=4.5)
    plan(request)
    content = json.loads(plan_path(request.out).read_text())
    content["matrices"][1]["format"] = "int6-g64-fixed"
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps(content))
    name = content["matrices"][1]["tensor"]
    result = quantize(asked(out="again", from_plan=edited))
    assert result.manifest["tensors"][name]["format"] == "int6-g64-fixed"


def test_a_plan_of_another_model_is_refused(asked: Any, tmp_path: Path) -> None:
    request = asked(bits_per_weight=4.5)
    plan(request)
    content = json.loads(plan_path(request.out).read_text())
    content["key"]["source_sha256"] = "0" * 64
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="another model"):
        plan(asked(from_plan=other))


@pytest.mark.parametrize(
    ("budget", "advice"),
    [
        ({"bits_per_weight": 1.5}, "smaller model: these are the smallest formats"),
        ({"file_size": "1KB"}, "smaller model: these are the smallest formats"),
        ({"memory": "1MB"}, "shorter --context"),
    ],
)
def test_a_budget_below_the_smallest_formats_is_refused_before_the_pass(
    asked: Any, budget: dict[str, Any], advice: str, tmp_path: Path
) -> None:
    with pytest.raises(DoesNotFit, match=f"MB at least.*{advice}"):
        plan(asked(**budget))
    assert not list(tmp_path.glob("*.sensitivities-*"))


def test_a_plan_of_a_model_that_is_not_there_is_exit_code_4(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = refusal(capsys, 4, "quantize", tmp_path / "none", "--bits-per-weight", "4", "--plan")
    assert "none" in line


def test_a_plan_that_is_not_there_is_told(asked: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json: there is no such plan"):
        plan(asked(from_plan=tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory": "1GiB", "bits_per_weight": 4}, "more than one budget"),
        ({"memory": "1GiB", "bits": 4}, "a budget or a plan says the formats"),
        ({"file_size": "1GB", "embedding": 8}, "a budget or a plan says the formats"),
        ({"file_size": "1GB", "context_tokens": 64}, "only memory depends on this"),
        ({"memory": "lots"}, "not an amount of memory"),
        ({"bits_per_weight": 0}, "bits out of range"),
        ({"bits_per_weight": 4, "method": "round"}, "a budget needs calibration"),
        ({"memory": "1GiB", "parallel": 0}, "a count out of range"),
        ({"bits_per_weight": 4, "swaps": -1}, "a count out of range"),
        ({"bits": 4, "swaps": 2}, "only a budget's mix has formats to swap"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_quantize_request("model", "out", **options)


def test_swaps_are_measured_and_more_bytes_never_lose_more(
    asked: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crumb.planning.draw", lambda model, calibration: Written(tokens[::-1]))
    kls = []
    for bits in (4.0, 4.5, 5.0):
        made = plan(asked(out=str(bits), bits_per_weight=bits, swaps=3))
        unswapped = plan(asked(out=f"{bits} alone", bits_per_weight=bits))
        assert made.bits_per_weight <= bits
        assert made.measured_kl == pytest.approx(made.expected_kl, rel=0.5)
        assert unswapped.measured_kl is None
        kls.append(made.measured_kl)
    assert kls == sorted(kls, reverse=True)
    small = plan(asked(out="again", bits_per_weight=4.0, swaps=3))
    assert small.measured_kl == kls[0]


def test_a_rehearsal_that_was_stopped_goes_on(
    asked: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crumb.planning.draw", lambda model, calibration: Written(tokens[::-1]))
    request, whole, counted = asked(bits_per_weight=4.5, swaps=2), Rehearsal._solve_matrix, []

    def stopping(self: Rehearsal, *arguments: Any) -> Any:
        counted.append(0)
        if len(counted) == 5:
            raise KeyboardInterrupt
        return whole(self, *arguments)

    monkeypatch.setattr(Rehearsal, "_solve_matrix", stopping)
    with pytest.raises(KeyboardInterrupt):
        plan(request)
    stored = {path: path.stat().st_mtime_ns for path in _solved(request)}
    assert stored
    again = plan(request)
    assert stored.items() <= {path: path.stat().st_mtime_ns for path in _solved(request)}.items()
    shutil.rmtree(next(request.out.parent.glob("*.sensitivities-*")) / "rehearsal")
    plan_path(request.out).unlink()
    assert plan(request) == again


def _solved(request: Any) -> list[Path]:
    return list(request.out.parent.glob("*.sensitivities-*/rehearsal/tensors/*.safetensors"))


def test_a_plan_of_a_quantized_model_is_refused_in_one_line(asked: Any) -> None:
    request = asked(bits=4, group_size=64, effort="fast")
    out = quantize(request).out
    again = make_quantize_request(str(out), out.with_name("again"), bits_per_weight=4.0)
    with pytest.raises(UsageError, match=r"quantized already.*float checkpoint it was made from"):
        plan(again)


def test_the_losses_are_what_the_divergence_grows_by(
    source: Path, tokens: Any, asked: Any, tmp_path: Path
) -> None:
    """One matrix at a time, its codes solved as the pass solves them, the others float."""
    model, request = open_model(str(source)), asked(bits=4, group_size=64)
    losses = SensitivityPass(model.checkpoint, tokens, request.settings, tmp_path / "pass").run()
    assert set(losses) == {spec.name for spec in model.plan.tensors() if spec.matrix}
    float_logits = log_probabilities(str(source), tokens)
    for name in ("layers.0.self_attn.v_proj", "layers.1.mlp.down_proj", "embed_tokens"):
        matrix = next(each for each in losses if name in each)
        formats = {"*": "float", matrix: "super3-g32-fixed"}
        out = quantize(asked(out=name, bits=4, effort="fast", tensor=formats)).out
        logits = log_probabilities(str(out), tokens)
        kl = (np.exp(float_logits) * (float_logits - logits)).sum(-1).mean()
        assert losses[matrix]["super3-g32-fixed"] == pytest.approx(kl, rel=0.5)


def log_probabilities(model: str, tokens: Any) -> Any:
    logits = np.asarray(Backward(open_model(model), tokens).logits(), np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_tokens_that_did_not_come_come_as_often_as_those_that_came_once() -> None:
    shares = token_shares(np.array([[0, 0, 0, 1], [2, 2, 3, 3]]), 6)
    weights = np.array([3, 1, 2, 2, 0.5, 0.5])
    np.testing.assert_allclose(shares, weights / weights.sum())
    np.testing.assert_allclose(token_shares(np.array([[0, 1]]), 2), [0.5, 0.5])


def test_a_sample_is_within_the_rows_and_evenly_spread() -> None:
    assert sample(5, 64) == list(range(5))
    rows = sample(4096, 64)
    assert (len(rows), rows[0], rows[-1]) == (64, 0, 4095)
    assert len(set(rows)) == 64
