"""The package's own front door, as Python users call it: crumb.quantize, load, evaluate, export.

In: the embedded model. Out: one arrow after the other, by keywords.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import crumb
from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import UsageError
from crumb.solve.problem import Method, SolveSettings


def test_a_model_is_quantized_loaded_and_measured_by_keywords(tmp_path: Path) -> None:
    out = tmp_path / "model"
    result = crumb.quantize(
        "novella-7m", bits=3, out=str(out), group_size=64, solve=SolveSettings(method=Method.ROUND)
    )
    assert result.out == out
    with crumb.load(out, context_tokens=64) as model:
        assert model.generate("The sea", max_tokens=4, ignore_end=True).completion_tokens == 4
    text = "excerpt-evaluation"
    measured = crumb.evaluate(str(out), text=text, window_tokens=64, limit_windows=2)
    assert measured.bits_per_weight == result.bits_per_weight


def test_a_target_says_how_many_bits(tmp_path: Path) -> None:
    result = crumb.quantize(
        "novella-7m",
        out=tmp_path / "model",
        target="gguf:q4_0",
        solve=SolveSettings(method=Method.ROUND),
    )
    formats = {tensor["format"] for tensor in result.manifest["tensors"].values()}
    assert formats == {"int4-g32-fixed", "int8-g32-fixed"}
    with pytest.raises(UsageError, match="nothing says how many bits"):
        crumb.quantize("novella-7m", out=tmp_path / "other")


def test_a_model_is_exported_by_keywords(tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    result = crumb.export("novella-7m", out=str(out), to="gguf", gguf_type="q8_0")
    assert result.out == out
    assert result.file_bytes == open_checkpoint(out).weight_bytes()
    assert {tensor.target for tensor in result.tensors} == {"Q8_0", "F32"}


def test_an_export_to_nowhere_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"one of crumb, gguf, .*found 'onnx'"):
        crumb.export("novella-7m", tmp_path / "model", "onnx")
    with pytest.raises(UsageError, match=r"no such setting of an export.*gguf_tipe"):
        crumb.export("novella-7m", tmp_path / "model", "gguf", gguf_tipe="q8_0")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("room", ["evaluation", "exporting", "pipeline", "cli.main"])
def test_every_name_of_the_front_door_can_be_called_whatever_was_imported(room: str) -> None:
    code = f"import crumb.{room}\nfor name in crumb.__all__: assert callable(getattr(crumb, name))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_setting_that_no_quantization_has_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="grup_size"):
        crumb.quantize("novella-7m", bits=3, out=tmp_path / "model", grup_size=64)


def test_a_name_that_the_package_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="quantise"):
        _ = crumb.quantise  # type: ignore[attr-defined]
