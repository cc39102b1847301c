"""Quantizing for a target: formats by tensor, matrices left float, and what the files then hold.

In: requests with targets and patterns on tiny checkpoints. Out: stored formats, values, manifests.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from exhaustive import every
from tiny_checkpoint import DOWN, EMBEDDING, HEAD, QUERY, make_tensors, write_checkpoint

from crumb.calibrate.token_weights import GradientPass
from crumb.calibrate.walk import StageWalk
from crumb.checkpoints.tensor_map import StoredPacked
from crumb.formats.catalog import ZeroKind, make_format
from crumb.formats.grid import decode_reference, encode_reference, make_parameters
from crumb.formats.layouts.gguf_conversion import exact_type
from crumb.kernels.tile import unpack_tensor
from crumb.pipeline import Calibration, QuantizeRequest, quantize
from crumb.progress import Progress
from crumb.run.model import open_model
from crumb.solve.problem import AS_PUBLISHED, Method, SolveSettings
from crumb.solve.scales import minmax

CALIBRATION = Calibration("excerpt-calibration", sequences=4, length_tokens=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One super-block wide, untied; down_proj reads 96, o_proj 64."""
    tensors = make_tensors(tied=False, hidden=256, blocks=2)
    return write_checkpoint(tmp_path_factory.mktemp("targets") / "wide", tensors)


@pytest.fixture
def request_of_wide(model: Path, tmp_path: Path) -> QuantizeRequest:
    return QuantizeRequest(
        str(model), tmp_path / "out", target="gguf:q3_k", calibration=CALIBRATION
    )


def formats_in(out: Path) -> dict[str, str]:
    """Every matrix that is stored packed, and its format."""
    checkpoint = open_model(str(out)).checkpoint
    formats = {}
    for spec in checkpoint.plan.tensors():
        entry = checkpoint.tensors.entry(spec.name)
        if isinstance(entry, StoredPacked):
            formats[spec.name] = entry.format.name
    return formats


@pytest.mark.parametrize(
    ("name", "method"),
    every(["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q4_1", "q2_0", "mxfp4"], Method),
)
def test_everything_stored_is_something_a_gguf_file_holds(
    name: str, method: Method, request_of_wide: QuantizeRequest
) -> None:
    solve = SolveSettings(method=method, refits=1)
    request = replace(request_of_wide, target=f"gguf:{name}", embedding=name, solve=solve)
    result = quantize(request)
    checkpoint = open_model(str(request.out)).checkpoint
    stored = 0
    for spec in checkpoint.plan.tensors():
        entry = checkpoint.tensors.entry(spec.name)
        if isinstance(entry, StoredPacked):
            assert exact_type(entry.format, spec.shape[1]) is not None
            stored += 1
    assert stored == 2 * 7 + 2
    for tensor in (EMBEDDING, QUERY):
        assert result.manifest["tensors"][tensor]["format"].startswith(
            {"q4_1": "int4-g32-minimum", "q2_0": "int2-g64-fixed"}.get(name, name)
        )


def test_fallbacks_are_reported_with_their_reason(request_of_wide: QuantizeRequest) -> None:
    result = quantize(request_of_wide)
    fallbacks = result.manifest["fallbacks"]
    assert [name.split(".")[4] for name in fallbacks] == ["down_proj", "o_proj"] * 2
    down = result.manifest["tensors"][fallbacks[0]]
    assert down["format"] == "int4-g32-fixed"
    assert down["fallback"] == "q4_0: 96 inputs are not in whole blocks of q3_k"
    assert result.manifest["tensors"][QUERY]["fallback"] is None


def test_a_matrix_left_float_is_the_sources(request_of_wide: QuantizeRequest) -> None:
    request = replace(request_of_wide, head="float", tensor=(("q_proj", "f16"),))
    result = quantize(request)
    before = open_model(request.model).checkpoint.tensors
    after = open_model(str(request.out)).checkpoint.tensors
    for name in (HEAD, QUERY):
        assert name not in result.manifest["tensors"]
        assert after.entry(name).size_bytes == before.entry(name).size_bytes
        np.testing.assert_array_equal(after.read_float(name), before.read_float(name))
    assert QUERY.replace("q_proj", "k_proj") in formats_in(request.out)


def test_a_width_that_no_type_holds_is_left_float_and_reported(tmp_path: Path) -> None:
    tensors = make_tensors(hidden=256, feed_forward=100, blocks=1)
    odd = write_checkpoint(tmp_path / "odd", tensors)
    request = QuantizeRequest(
        str(odd), tmp_path / "out", target="gguf:q4_k", calibration=CALIBRATION
    )
    down = DOWN.replace(".2.", ".0.")
    result = quantize(request)
    record = result.manifest["tensors"][down]
    assert record == {
        "format": "float",
        "shape": [256, 100],
        "bytes": 2 * 256 * 100,
        "fallback": "left float: 100 inputs are not in whole blocks of q4_k",
    }
    assert down in result.manifest["fallbacks"]
    assert down not in formats_in(request.out)
    assert quantize(request).already_done


@pytest.mark.parametrize("method", list(Method))
def test_zero_points_for_gptq_begin_at_one(
    method: Method, request_of_wide: QuantizeRequest
) -> None:
    request = replace(request_of_wide, target="gptq", bits=2, group_size=32, zero=ZeroKind.VARIABLE)
    request = replace(request, solve=SolveSettings(method=method))
    quantize(request)
    tensors = open_model(str(request.out)).checkpoint.tensors
    formats = formats_in(request.out)
    assert len(formats) == 2 * 7
    lowest = []
    for name, format in formats.items():
        assert format == "int2-g32-variable"
        entry = tensors.entry(name)
        assert isinstance(entry, StoredPacked)
        _, parameters = unpack_tensor(entry.read())
        assert parameters.zero_point is not None
        lowest.append(parameters.zero_point.min())
    assert min(lowest) == 1
    assert {EMBEDDING, HEAD}.isdisjoint(formats)


def test_an_embedding_of_few_bits_is_solved_with_a_target_and_without(
    request_of_wide: QuantizeRequest,
) -> None:
    plain = replace(request_of_wide, target=None, bits=3, group_size=32)
    asked = {
        "target": replace(request_of_wide, embedding="q3_k"),
        "plain": replace(plain, embedding=3),
        "usual": plain,
        "wide": replace(plain, embedding=8),
        "published": replace(plain, embedding=3, solve=AS_PUBLISHED),
    }
    errors = {
        name: quantize(replace(request, out=request.out.with_name(name))).manifest["tensors"][
            EMBEDDING
        ]["relative_error"]
        for name, request in asked.items()
    }
    assert errors["target"] > 0
    assert errors["plain"] > 0
    assert errors["usual"] > 0, "5 bits beside 3"
    assert errors["wide"] is None, "8 bits are rounded"
    assert errors["published"] is None


def test_a_stopped_run_for_a_target_continues_to_the_same_bytes(
    request_of_wide: QuantizeRequest,
) -> None:
    whole = replace(request_of_wide, out=request_of_wide.out.with_name("whole"))
    quantize(whole)
    steps: list[str] = []

    def stopping(step: Progress) -> None:
        steps.append(step.doing)
        if len(steps) == 9:
            raise ConnectionError("stopped")

    with pytest.raises(ConnectionError):
        quantize(request_of_wide, progress=stopping)
    assert list(request_of_wide.out.with_name("out.partial").glob("tensors/*"))
    quantize(request_of_wide)
    for name in ("model.safetensors", "manifest.json"):
        assert (request_of_wide.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_progress_for_a_target_ends_at_its_total(request_of_wide: QuantizeRequest) -> None:
    seen: list[Progress] = []
    quantize(request_of_wide, progress=seen.append)
    assert seen[-1].share == pytest.approx(1, rel=1e-9)
    assert seen[-1].seconds_left == pytest.approx(0, abs=1e-6)


def test_a_model_that_lies_on_its_targets_grid_keeps_its_codes_and_needs_no_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file of type Q4_1 does, once it was exported to float16."""
    format = make_format(4, 32, ZeroKind.MINIMUM)
    tensors = make_tensors(tied=False, blocks=2)
    codes = {}
    for name, weights in tensors.items():
        if name in (EMBEDDING, HEAD) or weights.ndim == 1:
            continue
        scales = minmax(weights, format)
        parameters = make_parameters(format, *scales)
        codes[name] = encode_reference(weights, parameters, format)
        tensors[name] = decode_reference(codes[name], parameters, format).astype(np.float16)
    model = write_checkpoint(tmp_path / "exported", tensors)

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is left to solve")

    monkeypatch.setattr(GradientPass, "run", refuse)
    monkeypatch.setattr(StageWalk, "statistics", refuse)
    request = QuantizeRequest(
        str(model), tmp_path / "out", target="gguf:q4_1", head="float", calibration=CALIBRATION
    )
    told: list[Progress] = []
    result = quantize(request, told.append)
    entries = open_model(str(request.out)).checkpoint.tensors.entries
    assert len(codes) == 14
    for name, expected in codes.items():
        entry = entries[name]
        assert isinstance(entry, StoredPacked)
        assert (entry.read_codes(slice(None))[0] == expected).all()
        assert result.manifest["tensors"][name]["on_grid"] is True
    assert "on_grid" not in result.manifest["tensors"][EMBEDDING]
    assert sum("on its grid already" in step.doing for step in told) == 14
