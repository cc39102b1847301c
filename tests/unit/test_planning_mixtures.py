"""Budgets of mixtures: one format for all experts of a kind, by losses that are what they cost.

In: tiny mixtures with experts wide enough for groups, texts that they write themselves. Out: the
losses of experts and of heads beside the divergence that their formats make; plans and files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixture_configurations import MIXTURES
from tiny_models import write_model

from crumb.fitting.bundles import bundles_of
from crumb.fitting.sensitivity import SensitivityPass, spread
from crumb.pipeline import plan, quantize
from crumb.requests.quantize_options import make_quantize_request
from crumb.run.backward import Backward
from crumb.run.model import open_model

WIDE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "v_head_dim": 32}
MODELS = {
    "mixtral": WIDE | {"head_dim": 16, "intermediate_size": 64},
    "gpt_oss": WIDE | {"head_dim": 16, "intermediate_size": 64, "swiglu_limit": 7.0},
    "deepseek_v2": WIDE | LATENT | {"qk_rope_head_dim": 8},
}

ASKED: Any = {"sequences": 24, "length_tokens": 24, "effort": "fast", "pack": False}


@pytest.fixture(scope="module", params=list(MODELS))
def source(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return write_model(folder, MIXTURES[request.param] | MODELS[request.param])


@pytest.fixture(scope="module")
def tokens(source: Path) -> Any:
    """What the model itself writes: there the loss's gradients are those of the divergence."""
    rng = np.random.default_rng(1)
    written = rng.integers(0, 97, (24, 1))
    for _ in range(23):
        last = np.exp(log_probabilities(source, written)[:, -1])
        drawn = (last.cumsum(-1) < rng.random((24, 1))).sum(-1)
        written = np.concatenate([written, drawn[:, None]], axis=1)
    return np.minimum(written, 96)


def log_probabilities(model: Path, tokens: Any) -> Any:
    logits = np.asarray(Backward(open_model(str(model)), tokens).logits(), np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture
def drawn(tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Drawn:
        def __init__(self) -> None:
            self.tokens, self.rows, self.sources = tokens, tokens, ()

        def sha256(self) -> str:
            return "0"

    monkeypatch.setattr("crumb.pipeline.draw", lambda model, calibration: Drawn())
    monkeypatch.setattr("crumb.pipeline.check_draw", lambda model, calibration: None)


@pytest.mark.usefixtures("drawn")
def test_experts_of_a_kind_get_one_format_and_the_file_is_as_planned(
    source: Path, tmp_path: Path
) -> None:
    request = make_quantize_request(str(source), tmp_path / "out", bits_per_weight=5.5, **ASKED)
    chosen = plan(request)
    formats = {each.tensor: each.format for each in chosen.matrices}
    together = [each for each in bundles_of(open_model(str(source)).plan) if "{" in each.name]
    assert together
    for bundle in together:
        assert len({formats[spec.name] for spec in bundle.matrices}) == 1
    assert len(set(formats.values())) > 1
    result = quantize(request)
    assert result.file_bytes == chosen.file_bytes
    assert result.bits_per_weight <= 5.5
    tensors = result.manifest["tensors"]
    assert formats == {name: record["format"] for name, record in tensors.items()}


@pytest.mark.usefixtures("drawn")
def test_the_losses_of_experts_and_heads_are_what_the_divergence_grows_by(
    source: Path, tokens: Any, tmp_path: Path
) -> None:
    """One bundle at a time, the others float; of the last block, behind which nothing is routed.

    Experts of earlier blocks cost more than their losses: other tokens choose other experts then,
    and no gradient sees that.
    """
    model = open_model(str(source))
    asked: Any = {"bits": 4, "group_size": 32} | ASKED
    settings = make_quantize_request(str(source), tmp_path / "out", **asked).settings
    losses = SensitivityPass(model.checkpoint, tokens, settings, tmp_path / "pass").run()
    float_logits = log_probabilities(source, tokens)
    bundles = [each for each in bundles_of(model.plan) if "{" in each.name]
    assert {each.name for each in bundles_of(model.plan)} == set(losses)
    for bundle in (each for each in bundles if "layers.1." in each.name):
        named = {"*": "float"} | {spec.name: "super3-g32-fixed" for spec in bundle.matrices}
        place = tmp_path / f"{bundles.index(bundle)}"
        out = quantize(make_quantize_request(str(source), place, tensor=named, **asked)).out
        logits = log_probabilities(out, tokens)
        kl = (np.exp(float_logits) * (float_logits - logits)).sum(-1).mean()
        assert losses[bundle.name]["super3-g32-fixed"] == pytest.approx(kl, rel=0.5), bundle.name


def test_parts_that_stand_for_all_are_spread() -> None:
    assert spread(5, 8) == [0, 1, 2, 3, 4]
    assert spread(64, 8) == [4, 12, 20, 28, 36, 44, 52, 60]
