"""Trained rounding on its way through a model: what is taken, deaths, and the bytes they leave.

In: a tiny checkpoint, few steps. Out: manifests and weight files.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import DOWN, make_tensors, write_checkpoint
from training_runs import dying_at, weights_of

from crumb.calibrate import block_trainer, block_training
from crumb.calibrate.block_training import BlockTraining, Trained
from crumb.calibrate.trained_matrix import Rates, TrainedMatrix
from crumb.pipeline import QuantizeRequest, quantize
from crumb.requests.quantize_options import make_quantize_request
from crumb.run.model import open_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("training") / "tiny", make_tensors(blocks=2))


@pytest.fixture
def request_of_tiny(tiny: Path, tmp_path: Path) -> QuantizeRequest:
    """Two blocks, few steps, two texts: what judges is what is trained on."""
    return make_quantize_request(
        tiny,
        tmp_path / "out",
        bits=2,
        group_size=32,
        effort="best",
        training_steps=6,
        model_steps=0,
        calibration="excerpt-calibration",
        sequences=2,
        length_tokens=96,
        pack=False,
    )


def trained(result: Any) -> dict[str, dict[str, float]]:
    tensors = result.manifest["tensors"]
    return {name: each["trained"] for name, each in tensors.items() if "trained" in each}


def test_every_layer_of_a_block_says_what_its_training_came_to(
    request_of_tiny: QuantizeRequest,
) -> None:
    result = quantize(request_of_tiny)
    outcomes = trained(result)
    assert len(outcomes) == 14
    assert {name.split(".")[2] for name in outcomes} == {"0", "1"}
    for outcome in outcomes.values():
        assert 0 < outcome["held_out_before"] < 2
    plain = replace(request_of_tiny.solve, training_steps=0)
    solved = quantize(replace(request_of_tiny, solve=plain, out=request_of_tiny.out / "plain"))
    assert not trained(solved)


@pytest.mark.parametrize("accepted", [True, False])
def test_only_what_the_texts_held_out_say_is_better_is_taken(
    accepted: bool, request_of_tiny: QuantizeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flipped(_: BlockTraining, matrices: dict[str, TrainedMatrix], *__: object) -> Trained:
        for matrix in matrices.values():
            matrix.latent[:] = matrix.format.row.largest_code - matrix.latent
        return Trained(1.0, 0.5 if accepted else 1.5)

    plain = replace(request_of_tiny.solve, training_steps=0)
    solved_out = request_of_tiny.out.with_name("solved")
    quantize(replace(request_of_tiny, solve=plain, out=solved_out))
    monkeypatch.setattr(block_trainer, "train_block", flipped)
    quantize(request_of_tiny)
    first = "model.layers.0.self_attn.q_proj.weight"  # later blocks see what the first has become
    solved, taken = (
        open_model(str(out)).checkpoint.tensors.read_float(first)
        for out in (solved_out, request_of_tiny.out)
    )
    assert (taken == solved).all() != accepted


def test_a_run_that_died_in_training_goes_on_to_the_same_bytes(
    request_of_tiny: QuantizeRequest,
) -> None:
    whole = replace(request_of_tiny, out=request_of_tiny.out.with_name("whole"))
    quantize(whole)
    expected = weights_of(whole.out)
    assert expected
    for deaths in (3, 9):
        with pytest.raises(RuntimeError, match="killed"):
            quantize(request_of_tiny, dying_at(deaths))
    quantize(request_of_tiny)
    assert weights_of(request_of_tiny.out) == expected


def test_a_run_that_died_while_trained_codes_took_their_place_goes_on_to_the_same_bytes(
    request_of_tiny: QuantizeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(request_of_tiny, out=request_of_tiny.out.with_name("whole"))
    monkeypatch.setattr(Trained, "accepted", property(lambda self: True))
    quantize(whole)
    place = block_trainer.BlockTrainer._take_place

    def once(self: block_trainer.BlockTrainer, name: str) -> Any:
        if name == DOWN.replace("layers.2", "layers.0"):
            raise RuntimeError("killed")
        return place(self, name)

    with monkeypatch.context() as patched:
        patched.setattr(block_trainer.BlockTrainer, "_take_place", once)
        with pytest.raises(RuntimeError, match="killed"):
            quantize(request_of_tiny)
    quantize(request_of_tiny)
    assert weights_of(request_of_tiny.out) == weights_of(whole.out)


def test_training_lowers_the_error_of_what_it_is_trained_on(
    request_of_tiny: QuantizeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales alone: of so few tokens, codes that move are a gamble."""
    monkeypatch.setattr(block_training, "RATES", Rates(0.0, 0.003))
    steps = replace(request_of_tiny.solve, training_steps=25)
    outcomes = trained(quantize(replace(request_of_tiny, solve=steps)))
    ratios = [each["held_out_after"] / each["held_out_before"] for each in outcomes.values()]
    assert np.max(ratios) < 0.98
