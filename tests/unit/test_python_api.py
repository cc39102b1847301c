"""The package's own front door, as Python users call it: crumb.quantize, load, evaluate, export.

In: the embedded model. Out: one arrow after the other, by keywords.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import crumb
from crumb.checkpoints.opening import open_checkpoint
from crumb.cli.eval import evaluate as eval_verb
from crumb.cli.export import export as export_verb
from crumb.cli.quantize import quantize as quantize_verb
from crumb.errors import UsageError
from crumb.formats.catalog import ZeroKind
from crumb.requests.budget import KINDS, OF_MEMORY
from crumb.requests.evaluate_request import EvaluateOptions, EvaluateRequest
from crumb.requests.export_request import ExportOptions, ExportRequest
from crumb.requests.quantize_options import QuantizeOptions, make_quantize_request
from crumb.requests.quantize_request import Calibration, QuantizeRequest
from crumb.solve.problem import AS_PUBLISHED, Method, Scales, SolveSettings


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
    result = crumb.export("novella-7m", out=str(out), to="gguf", type="q8_0")
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


def test_everything_public_is_told_by_dir_and_lives_where_it_is_said_to() -> None:
    assert set(crumb.__all__) < set(dir(crumb))
    assert crumb.__all__ == sorted(crumb.__all__)
    for name in crumb.__all__:
        assert getattr(crumb, name).__name__ == name
    errors = [name for name, kind in vars(crumb.errors).items() if isinstance(kind, type)]
    assert {name for name in errors if issubclass(vars(crumb.errors)[name], Exception)} <= set(
        crumb.__all__
    )


OPTIONS = {
    "quantize": (QuantizeOptions, (QuantizeRequest, Calibration, SolveSettings)),
    "evaluate": (EvaluateOptions, (EvaluateRequest,)),
    "export": (ExportOptions, (ExportRequest,)),
}
POSITIONAL = {"model", "reference", "out", "to", "spec", "budget"}
"""Fields that are parameters of their own, or are named by more than one keyword."""


@pytest.mark.parametrize("name", OPTIONS)
def test_the_keywords_of_a_verb_are_the_fields_of_its_records(name: str) -> None:
    options, records = OPTIONS[name]
    names = [each.name for record in records for each in fields(record)]
    assert len(names) == len(set(names)), "a keyword means one thing"
    own = {"as_published", "effort", "swaps", *KINDS, *OF_MEMORY} if name == "quantize" else set()
    assert set(typing.get_type_hints(options)) == set(names) - POSITIONAL | own
    assert options.__name__ in str(inspect.signature(getattr(crumb, name)))


def test_keywords_and_the_command_line_have_the_same_words() -> None:
    """But for units: the command line says --length, Python length_tokens."""
    options = set(inspect.signature(quantize_verb).parameters) - {"model", "out", "json", "plan"}
    words = {name.removesuffix("_tokens") for name in typing.get_type_hints(QuantizeOptions)}
    assert options < words
    for verb, kind in ((eval_verb, EvaluateOptions), (export_verb, ExportOptions)):
        words = {re.sub("_(tokens|windows)$", "", each) for each in typing.get_type_hints(kind)}
        assert words < set(inspect.signature(verb).parameters)


def test_one_request_comes_of_words_numbers_and_records(tmp_path: Path) -> None:
    by_words = make_quantize_request(
        Path("m"),
        str(tmp_path),
        bits=np.int64(3),
        group_size="row",
        zero="variable",
        embedding="q6_k",
        tensor={"down": "q4_0"},
        calibration="excerpt-calibration",
        sequences=np.int32(4),
        method="gptq",
        scales="minmax",
        damping=np.float32(0.5),
    )
    by_records = QuantizeRequest(
        "m",
        tmp_path,
        3,
        group_size=0,
        zero=ZeroKind.VARIABLE,
        embedding="q6_k",
        tensor=(("down", "q4_0"),),
        calibration=Calibration("excerpt-calibration", sequences=4),
        solve=SolveSettings(scales=Scales.MINMAX, damping=0.5),
    )
    assert by_words == by_records
    assert json.dumps(by_words.key())
    rounded = make_quantize_request("m", tmp_path, bits=3, method="round")
    assert rounded.solve == SolveSettings(method=Method.ROUND, scales=Scales.MINMAX)
    published = make_quantize_request("m", tmp_path, bits=3, as_published=True, sequences=2)
    assert published.solve == AS_PUBLISHED
    assert published.calibration == Calibration("wikitext2", sequences=2, length_tokens=2048)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"method": "grptq"}, "method: no such kind (expected round or gptq, found 'grptq')"),
        ({"scales": 3}, "scales: no such kind (expected minmax or search"),
        ({"zero": "one"}, "zero: no such kind (expected fixed or variable or minimum"),
        ({"group_size": "all"}, "group_size: not a group size (expected a number, or row"),
        ({"bits": 3.0}, "bits: not a whole number"),
        ({"sequences": "4"}, "sequences: not a whole number"),
        ({"damping": 2}, "damping is out of range"),
        ({"damping": "little"}, "damping is out of range"),
        ({"as_published": True, "method": "gptq"}, "as_published already says how to solve"),
        ({"target": "gguf:q3_k", "bits": None, "zero": "fixed"}, "the target already says how"),
        ({"target": "gptq", "head": 8}, "a GPTQ file keeps the head float"),
        ({"grup_size": 64}, "no such setting of a quantization (found grup_size). Did you mean"),
    ],
)
def test_what_cannot_be_is_refused_by_its_word(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(text)):
        make_quantize_request("m", "out", **{"bits": 3} | options)


def test_every_verb_tells_cost_and_progress_in_one_shape(tmp_path: Path) -> None:
    costs: list[crumb.Cost] = []
    steps: list[crumb.Progress] = []
    told: dict[str, Any] = {"cost": costs.append, "progress": steps.append}
    out = tmp_path / "model"
    crumb.quantize("novella-7m", bits=4, out=out, method="round", **told)
    crumb.export(out, tmp_path / "m.gguf", "gguf", **told)
    crumb.evaluate(out, text="excerpt-evaluation", window_tokens=64, limit_windows=2, **told)
    assert len(costs) == 3
    assert min(min(cost.memory_bytes, cost.seconds) for cost in costs) > 0
    assert [step.share for step in steps].count(1.0) >= 2
    assert all(0 <= step.share <= 1 and step.doing for step in steps)
    assert all(step.seconds_left is None or step.seconds_left >= 0 for step in steps)


def test_paths_are_taken_wherever_a_model_is(tmp_path: Path) -> None:
    with pytest.raises(crumb.ModelNotFound):
        crumb.evaluate(tmp_path / "nowhere")
    with pytest.raises(crumb.ModelNotFound):
        crumb.evaluate("novella-7m", tmp_path / "nowhere")
