"""All blocks trained together at the end of a quantization: what is taken, deaths, their bytes.

In: a tiny checkpoint, few steps, judgements every other step. Out: manifests and weight files.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import make_tensors, write_checkpoint
from training_runs import dying_at, weights_of

from crumb.calibrate import model_trainer, model_training
from crumb.calibrate.trained_matrix import Rates
from crumb.errors import UsageError
from crumb.fitting.training_cost import trained_weights, trains_together
from crumb.pipeline import QuantizeRequest, quantize
from crumb.requests.quantize_options import make_quantize_request
from crumb.requests.quantize_request import choose
from crumb.run.devices import arrays_on
from crumb.run.model import open_model
from crumb.texts.hub_texts import Use
from crumb.texts.sources import read_text

STEPS = 8


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("together") / "tiny", make_tensors(blocks=2))


@pytest.fixture
def asked(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> QuantizeRequest:
    """Two blocks at 2 bits; one text of four judges, often."""
    monkeypatch.setattr(model_training, "JUDGED_EVERY", 2)
    monkeypatch.setattr(model_training, "STEP_TOKENS", 128)
    monkeypatch.setattr(model_training, "RATES", Rates(5e-4, 1e-2))  # few steps have to do
    monkeypatch.setattr(model_trainer, "SAVE_SECONDS", 0.0)
    return make_quantize_request(
        tiny,
        tmp_path / "out",
        bits=2,
        group_size=32,
        effort="best",
        asymmetric=False,  # training has more to do
        training_steps=0,
        model_steps=STEPS,
        calibration="excerpt-calibration",
        sequences=8,
        length_tokens=64,
        pack=False,
    )


def divergence(model: Path, other: Path, tokens: np.ndarray) -> float:
    """Mean KL of the second model from the first, in nats."""
    there, here = (
        open_model(str(each)).logits(tokens).astype(np.float64) for each in (model, other)
    )
    there, here = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (there, here))
    return float((np.exp(there) * (there - here)).sum(-1).mean())


def test_what_was_trained_diverges_less_and_says_so(tiny: Path, asked: QuantizeRequest) -> None:
    result = quantize(asked)
    records = [each for each in result.manifest["tensors"].values() if "trained_together" in each]
    assert len(records) == 14
    (said,) = {tuple(each["trained_together"].items()) for each in records}
    outcome = dict(said)
    assert outcome["divergence_after"] < 0.97 * outcome["divergence_before"]
    assert outcome["steps"] == STEPS
    plain = replace(asked.solve, model_steps=0)
    solved = quantize(replace(asked, solve=plain, out=asked.out.with_name("solved")))
    assert "trained_together" not in str(solved.manifest)
    tokenizer = open_model(str(tiny)).tokenizer
    text = np.array(
        tokenizer.encode(read_text("excerpt-evaluation", Use.EVALUATION).text)[:768]
    ).reshape(8, 96)
    assert divergence(tiny, asked.out, text) < divergence(tiny, asked.out.with_name("solved"), text)


def test_what_helps_no_text_that_was_held_out_is_not_taken(
    asked: QuantizeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_training, "RATES", Rates(-0.05, -0.01))  # away from what is better
    monkeypatch.setattr(model_training, "PATIENCE", 2)
    outcome = quantize(asked).manifest["tensors"]["model.layers.0.self_attn.q_proj.weight"]
    said = outcome["trained_together"]
    assert said["divergence_after"] == said["divergence_before"]
    assert said["steps"] == 2 * 2
    plain = replace(asked, solve=replace(asked.solve, model_steps=0), out=asked.out / "plain")
    quantize(plain)
    first = "model.layers.0.mlp.down_proj.weight"
    taken, solved = (
        open_model(str(out)).checkpoint.tensors.read_float(first) for out in (asked.out, plain.out)
    )
    np.testing.assert_array_equal(taken, solved)


def test_a_run_that_died_in_training_goes_on_to_the_same_bytes(asked: QuantizeRequest) -> None:
    whole = replace(asked, out=asked.out.with_name("whole"))
    quantize(whole)
    expected = weights_of(whole.out)
    state = asked.out.with_name("out.partial") / "gradients" / model_trainer.STATE
    for deaths in (4, 3):
        with pytest.raises(RuntimeError, match="killed"):
            quantize(asked, dying_at(deaths))
        assert state.exists()
    quantize(asked)
    assert weights_of(asked.out) == expected


def test_a_run_that_died_while_codes_took_their_place_goes_on_to_the_same_bytes(
    asked: QuantizeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(asked, out=asked.out.with_name("whole"))
    quantize(whole)
    store, left = model_trainer.ModelTrainer._store, [5]

    def dying(*arguments: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("killed")
        store(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(model_trainer.ModelTrainer, "_store", dying)
    with pytest.raises(RuntimeError, match="killed"):
        quantize(asked)
    quantize(asked)
    assert weights_of(asked.out) == weights_of(whole.out)


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped_near_its_end(path: Path) -> None:
    """In the last matrix: those before it can be read."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        last = archive.infolist()[-1]
    content[last.header_offset + 200] ^= 1
    path.write_bytes(content)


def reshaped(path: Path) -> None:
    """The last matrix has a row less."""
    with np.load(path) as file:
        arrays = dict(file)
    arrays |= {name: arrays[name][1:] for name in list(arrays)[-1:]}
    np.savez(path, **arrays)  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", [halved, flipped_near_its_end, reshaped])
def test_a_damaged_state_is_none(damage: Callable[[Path], None], asked: QuantizeRequest) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        quantize(asked, dying_at(5))
    damage(asked.out.with_name("out.partial") / "gradients" / model_trainer.STATE)
    whole = replace(asked, out=asked.out.with_name("whole"))
    quantize(whole)
    quantize(asked)
    assert weights_of(asked.out) == weights_of(whole.out)


def test_models_that_are_too_large_are_not_trained_together(
    asked: QuantizeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = open_model(asked.model).plan
    formats = choose(plan, asked).formats
    assert trains_together(plan, formats, asked.solve)
    monkeypatch.setattr(model_training, "MOST_WEIGHTS", trained_weights(plan, formats) - 1)
    assert not trains_together(plan, formats, asked.solve)


def test_a_device_that_is_not_here_is_refused_before_the_work(asked: QuantizeRequest) -> None:
    with pytest.raises(UsageError, match="device"):
        quantize(replace(asked, device="abacus:1"))
    assert not asked.out.with_name("out.partial").exists()
    assert arrays_on("cpu") is np.asarray


def test_a_device_without_training_is_refused(asked: QuantizeRequest) -> None:
    plain = replace(asked.solve, model_steps=0)
    with pytest.raises(UsageError, match="nothing is trained"):
        replace(asked, solve=plain, device="cuda")
