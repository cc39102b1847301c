"""The card of a model: its bits are those of its files, its divergence the manifest's."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_checkpoint import write_checkpoint

from crumb.checkpoints.crumb.manifest import MeasuredRecord
from crumb.checkpoints.crumb.reader import MANIFEST
from crumb.checkpoints.huggingface.hub import locate
from crumb.checkpoints.opening import open_checkpoint
from crumb.pipeline import QuantizeRequest, quantize
from crumb.server.page.card import model_card
from crumb.solve.problem import Method, Scales, SolveSettings


def test_the_card_of_the_embedded_model_has_a_bar_for_each_stage() -> None:
    checkpoint = open_checkpoint(locate("novella-7m"))
    card = model_card(checkpoint)
    assert card.file_bytes == checkpoint.weight_bytes()
    assert card.parameters == checkpoint.plan.parameters()
    assert [stage.bits_per_weight for stage in card.stages] == [16] * len(card.stages)
    assert card.stages[0].name == checkpoint.plan.stages[0].name
    assert card.measured is None
    assert card.method is None


def test_the_card_of_a_quantized_model_says_how_it_was_made(tmp_path: Path) -> None:
    source, out = write_checkpoint(tmp_path / "tiny"), tmp_path / "int3"
    rounding = SolveSettings(method=Method.ROUND, scales=Scales.MINMAX)
    quantize(QuantizeRequest(str(source), out, bits=3, group_size=32, solve=rounding))
    card = model_card(open_checkpoint(out))
    assert card.stages[1].formats == ("int3-g32-fixed",)
    assert card.stages[1].bits_per_weight == 3 + 16 / 32  # codes, and a scale for each group
    assert card.stages[0].bits_per_weight > card.stages[1].bits_per_weight
    assert card.method == "round"
    assert card.bits_per_weight == 8 * card.file_bytes / card.parameters


def test_the_card_has_what_the_manifest_measured(tmp_path: Path) -> None:
    source, out = write_checkpoint(tmp_path / "tiny"), tmp_path / "int3"
    rounding = SolveSettings(method=Method.ROUND, scales=Scales.MINMAX)
    quantize(QuantizeRequest(str(source), out, bits=3, group_size=32, solve=rounding))
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["measured"] = {"text": "wikitext2-test", "kl": 0.1, "kl_standard_error": 0.01}
    (out / MANIFEST).write_text(json.dumps(manifest))
    measured = model_card(open_checkpoint(out)).measured
    assert measured == MeasuredRecord("wikitext2-test", 0.1, 0.01)
