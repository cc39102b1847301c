"""Codes trained through PyTorch come to what NumPy makes of them.

In: a tiny checkpoint at 2 bits, a few steps of both ways of training, on the CPU by both
libraries. Out: divergences and errors that agree within the rounding of f32 sums.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_checkpoint import make_tensors, write_checkpoint

import crumb
from crumb.calibrate import model_training
from crumb.calibrate.trained_matrix import Rates

pytestmark = pytest.mark.oracle

pytest.importorskip("torch")

SETTINGS = {
    "bits": 2,
    "group_size": 32,
    "embedding": "int8-g32-fixed",
    "effort": "best",
    "pack": False,
}
SETTINGS |= {"training_steps": 2, "model_steps": 8, "sequences": 3, "length_tokens": 128}


@pytest.mark.parametrize("codes", ["int", "lut", "super"])
def test_pytorch_trains_to_the_same(
    codes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_training, "JUDGED_EVERY", 2)
    monkeypatch.setattr(model_training, "RATES", Rates(5e-4, 1e-2))
    settings = {name: value for name, value in SETTINGS.items() if name != "group_size"}
    if codes != "super":
        settings["group_size"] = SETTINGS["group_size"]
    model = write_checkpoint(tmp_path / "model", make_tensors(blocks=1))
    outcomes = []
    for device in ("cpu", "cpu:0"):  # the second is PyTorch's
        out = tmp_path / device.replace(":", "-")
        made = crumb.quantize(
            model,
            out=out,
            codes=codes,
            device=device,
            calibration="excerpt-calibration",
            **settings,
        )
        record = made.manifest["tensors"]["model.layers.0.mlp.down_proj.weight"]
        outcomes.append((record["trained_together"], record["trained"]))
    (ours, block), (theirs, their_block) = outcomes
    assert ours["divergence_after"] < ours["divergence_before"]
    assert theirs == pytest.approx(ours, rel=1e-3)
    assert their_block == pytest.approx(block, rel=1e-3)
