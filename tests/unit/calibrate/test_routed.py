"""Experts are calibrated on the tokens that are routed to them, and borrow where these are few.

In: tiny mixtures of tests/architectures with a tokenizer of bytes. Out: each expert's H against
that of the tokens the finished model routes to it, counts in the manifest and in `crumb show`,
GPTQ against rounding, a killed run's bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_checkpoint import tokenizer_json
from tiny_models import VARIANTS, write_model

import crumb
from crumb import quantize_run
from crumb.calibrate import routed
from crumb.calibrate.drawing import draw
from crumb.checkpoints.opening import open_checkpoint
from crumb.cli.show import describe
from crumb.operations.experts import Experts, passes, uses_of
from crumb.operations.headlinear import HeadLinear
from crumb.operations.operation import Context
from crumb.requests.quantize_options import make_quantize_request
from crumb.run.array_executor import run_span
from crumb.run.model import Model, open_model, start_buffers

Floats = NDArray[np.float64]
WORDS: dict[str, Any] = {
    "bits": 3,
    "group_size": "row",
    "calibration": "excerpt-calibration",
    "sequences": 8,
    "length_tokens": 64,
}
STACKED, SCALED = "gpt_oss", "llama4_text"


def write_mixture(folder: Path, variant: str) -> Path:
    folder.mkdir()
    write_model(folder, dict(VARIANTS[variant]) | {"vocab_size": 300})
    (folder / "tokenizer.json").write_text(tokenizer_json())
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def inputs_of_experts(model: Model, tokens: NDArray[np.int64]) -> dict[str, tuple[Any, Any]]:
    """By the name of each expert's matrix: the rows it reads in a whole model, their shares."""
    rows: dict[str, tuple[Any, Any]] = {}
    flowing: dict[str, Any] = start_buffers(tokens)
    for stage in model.plan.stages:
        context = Context(model.stage_weights(stage))
        buffers = {name: flowing[name] for name in stage.inputs}
        for place, op in enumerate(stage.operations):
            if isinstance(op, Experts):
                x, shares, chosen = (buffers[name].reshape(tokens.size, -1) for name in op.reads)
                for each in passes(op, x, shares, uses_of(chosen, op.experts), context):
                    gate, up, down = op.matrices(each.expert)
                    rows |= {one.name: (each.x, each.share) for one in (gate, up)}
                    rows[down.name] = (each.inner, each.share)
            run_span(stage, place, place + 1, buffers, context)
        flowing |= {name: buffers[name] for name in stage.outputs}
    return rows


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Floats]:
    """The H that each matrix was solved by."""
    seen: dict[str, Floats] = {}
    solve = quantize_run.solve_gptq

    def recording(problem: Any) -> Any:
        factored = problem.hessian
        unit = factored.root
        upper = np.triu(unit)
        moment = upper @ upper.T
        moment[np.diag_indices(len(moment))] -= factored.added
        back = np.argsort(factored.order)
        seen[problem.name] = moment[np.ix_(back, back)]
        return solve(problem)

    monkeypatch.setattr(quantize_run, "solve_gptq", recording)
    return seen


@pytest.mark.parametrize("variant", ["qwen3_moe", "qwen2_moe", STACKED, SCALED])
def test_an_expert_is_calibrated_on_the_tokens_that_the_finished_model_routes_to_it(
    variant: str, tmp_path: Path, moments: dict[str, Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weighed by the squares of their shares, behind quantized gates and ups; all alike where
    shares scale the inputs."""
    monkeypatch.setattr(routed, "LEAST_TOKENS_PER_FEATURE", 1e-9)
    folder, out = write_mixture(tmp_path / "model", variant), tmp_path / "out"
    result = crumb.quantize(folder, out=out, token_power=0.0, **WORDS)
    request = make_quantize_request(folder, out, token_power=0.0, **WORDS)
    finished = open_model(str(out))
    rows = inputs_of_experts(finished, draw(finished, request.calibration).tokens)
    assert rows
    for name, (x, share) in rows.items():
        x, share = x.astype(np.float64), share.astype(np.float64)
        share = np.ones_like(share) if variant == SCALED else share
        exact = (x * share**2).T @ x / (share**2).sum()
        np.testing.assert_allclose(moments[name], exact, rtol=0, atol=2e-5 * exact.max())
        assert result.manifest["tensors"][name]["routed"] == {"tokens": len(x), "borrowed": 0.0}


def test_an_expert_of_few_tokens_borrows_those_of_its_block(
    tmp_path: Path, moments: dict[str, Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routed, "LEAST_TOKENS_PER_FEATURE", 6.0)
    folder, out = write_mixture(tmp_path / "model", "qwen3_moe"), tmp_path / "out"
    result = crumb.quantize(folder, out=out, token_power=0.0, **WORDS)
    request = make_quantize_request(folder, out, token_power=0.0, **WORDS)
    finished = open_model(str(out))
    rows = inputs_of_experts(finished, draw(finished, request.calibration).tokens)
    records = result.manifest["tensors"]
    few = [name for name in rows if "gate" in name and records[name]["routed"]["borrowed"] > 0.0]
    assert few
    for name in few:
        block = name.split("experts")[0]
        every = np.concatenate([rows[each][0] for each in rows if block in each and "gate" in each])
        own, share = (array.astype(np.float64) for array in rows[name])
        whole = every.astype(np.float64).T @ every / len(every)  # each token three times
        moment = (own * share**2).T @ own / (share**2).sum()
        weight = 1 - len(own) / (6 * own.shape[1])
        exact = (1 - weight) * moment + weight * whole
        assert records[name]["routed"] == {"tokens": len(own), "borrowed": pytest.approx(weight)}
        np.testing.assert_allclose(moments[name], exact, rtol=0, atol=2e-5 * exact.max())
    (row, *_) = describe(open_checkpoint(out))["experts"]
    counts = [len(rows[name][0]) for name in rows if "layers.0." in name and "gate" in name]
    assert (row["least_tokens"], row["most_tokens"]) == (min(counts), max(counts))
    assert row["borrowing"] >= sum("layers.0." in name for name in few)


def test_a_borrowed_token_is_scaled_as_those_of_its_block_are(
    tmp_path: Path, moments: dict[str, Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the mean of squares: what an expert's router would have made of it is not there."""
    monkeypatch.setattr(routed, "LEAST_TOKENS_PER_FEATURE", 1e9)
    folder, out = write_mixture(tmp_path / "model", SCALED), tmp_path / "out"
    crumb.quantize(folder, out=out, token_power=0.0, **WORDS)
    request = make_quantize_request(folder, out, token_power=0.0, **WORDS)
    finished = open_model(str(out))
    rows = inputs_of_experts(finished, draw(finished, request.calibration).tokens)
    first = {name: each for name, each in rows.items() if "layers.1." in name and "gate" in name}
    used = 2
    every = np.concatenate([x / share for x, share in first.values()]).astype(np.float64)
    shares = np.concatenate([share for _, share in first.values()]).astype(np.float64)
    exact = every.T @ every / len(every) * (shares**2).mean()  # each token is there twice
    assert len(every) == used * 8 * 64
    for name in first:
        np.testing.assert_allclose(moments[name], exact, rtol=0, atol=1e-3 * exact.max())


def test_an_expert_that_no_token_comes_to_borrows_all(tmp_path: Path) -> None:
    folder, out = write_mixture(tmp_path / "model", "qwen3_moe"), tmp_path / "out"
    words = WORDS | {"sequences": 1, "length_tokens": 2}
    result = crumb.quantize(folder, out=out, **words)
    routed_records = [record.get("routed") for record in result.manifest["tensors"].values()]
    unused = [each for each in routed_records if each and not each["tokens"]]
    assert unused
    assert all(each["borrowed"] == 1.0 for each in unused)


def test_a_head_is_calibrated_on_its_own_features(
    tmp_path: Path, moments: dict[str, Floats]
) -> None:
    folder, out = write_mixture(tmp_path / "model", "deepseek_v3"), tmp_path / "out"
    crumb.quantize(folder, out=out, token_power=0.0, **WORDS)
    request = make_quantize_request(folder, out, token_power=0.0, **WORDS)
    finished = open_model(str(out))
    flowing: dict[str, Any] = start_buffers(draw(finished, request.calibration).tokens)
    names = []
    for stage in finished.plan.stages[:3]:
        context = Context(finished.stage_weights(stage))
        for place, op in enumerate(stage.operations):
            if isinstance(op, HeadLinear):
                x = flowing[op.input].reshape(-1, op.heads, op.in_features).astype(np.float64)
                for head in range(op.heads):
                    exact = x[:, head].T @ x[:, head] / len(x)
                    names.append(op.matrix(head).name)
                    bound = 2e-5 * exact.max()
                    np.testing.assert_allclose(moments[names[-1]], exact, rtol=0, atol=bound)
            run_span(stage, place, place + 1, flowing, context)
            flowing |= start_buffers(draw(finished, request.calibration).tokens)
    assert len(names) == 2 * 2 * 3


@pytest.mark.parametrize("variant", ["qwen3_moe", STACKED, SCALED, "deepseek_v3"])
def test_calibrated_experts_are_nearer_to_the_float_model_than_rounded_ones(
    variant: str, tmp_path: Path
) -> None:
    """Everything else is left float, so that only experts differ."""
    folder = write_mixture(tmp_path / "model", variant)
    words = WORDS | {"sequences": 24, "tensor": [("*self_attn*_proj.weight", "float")]}
    words |= {"head": "float", "embedding": "float"}

    kl = {
        method: crumb.quantize(folder, out=tmp_path / method, method=method, **words).manifest[
            "measured"
        ]["kl"]
        for method in ("gptq", "round")
    }
    assert kl["gptq"] < 0.8 * kl["round"]


def test_a_killed_run_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_mixture(tmp_path / "model", "qwen3_moe")

    def bytes_of(out: Path) -> bytes:
        return (out / "model.safetensors").read_bytes() + (out / "manifest.json").read_bytes()

    words = WORDS | {"pack": False, "length_tokens": 32, "head": "float", "embedding": "float"}
    crumb.quantize(folder, out=tmp_path / "whole", **words)
    solve: Callable[..., Any] = quantize_run.solve_gptq
    left = [0]

    def dying(*words: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return solve(*words)

    monkeypatch.setattr(quantize_run, "solve_gptq", dying)
    out = tmp_path / "killed"
    for steps in (6, 2, 17):  # behind a gate, a gate and an up, in another block
        left[0] = steps
        with pytest.raises(KeyboardInterrupt):
            crumb.quantize(folder, out=out, **words)
    left[0] = 0
    crumb.quantize(folder, out=out, **words)
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
