"""The flow from checkpoint to crumb directory, as the library offers it.

In: requests on tiny checkpoints. Out: what each layer was calibrated on, what the manifest says of
it, formats, refusals. Bytes and deaths are in tests/e2e.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_checkpoint import DOWN, EMBEDDING, HEAD, QUERY, make_tensors, write_checkpoint

from crumb import load, quantize_run
from crumb.calibrate.drawing import draw
from crumb.calibrate.token_weights import GradientPass
from crumb.checkpoints.tensor_map import StoredPacked
from crumb.errors import SolveError, UsageError
from crumb.formats.catalog import CATALOG
from crumb.operations.linear import Linear
from crumb.operations.operation import Context
from crumb.pipeline import (
    Calibration,
    QuantizeRequest,
    choose_formats,
    quantize,
)
from crumb.progress import Progress
from crumb.run import whole_texts
from crumb.run.array_executor import run_span
from crumb.run.model import Model, open_model, start_buffers
from crumb.solve.gptq import Factored
from crumb.solve.problem import Method, SolveSettings

Floats = NDArray[np.float64]

REQUEST = QuantizeRequest(
    model="",
    out=Path(),
    bits=3,
    group_size=32,
    embedding=8,  # rounded: what is solved are layers
    head=8,
    calibration=Calibration("excerpt-calibration", sequences=8, length_tokens=64),
    solve=SolveSettings(token_power=0.0),
)


IN_BLOCK = [0, 0, 0, 1, 2, 2, 3]
"""Query, key and value read one input; output its own; gate and up one; down its own."""

GROUP_OF_LAYER = [4 * block + group for block in range(3) for group in IN_BLOCK] + [12]
"""The group of each linear layer, in the order of the model; the head comes last."""


@pytest.fixture
def request_of_tiny(tmp_path: Path) -> QuantizeRequest:
    """A quick job on an untied tiny checkpoint."""
    model = write_checkpoint(tmp_path / "tiny", make_tensors(tied=False))
    return replace(REQUEST, model=str(model), out=tmp_path / "out")


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> list[Floats]:
    """The H of every group of layers, in the order in which the pipeline factors them."""
    seen: list[Floats] = []
    factor = quantize_run.factor

    def recording(hessian: Floats, tokens: int, settings: SolveSettings) -> Factored | None:
        seen.append(hessian.copy())
        return factor(hessian, tokens, settings)

    monkeypatch.setattr(quantize_run, "factor", recording)
    return seen


def inputs_of_linears(
    model: Model, tokens: NDArray[np.int64]
) -> Iterator[tuple[Linear, NDArray[np.float32]]]:
    """Every linear layer with the rows that a whole model feeds it, in one pass."""
    flowing: dict[str, Any] = start_buffers(tokens)
    for stage in model.plan.stages:
        buffers = {name: flowing[name] for name in stage.inputs}
        context = Context(model.stage_weights(stage))
        for place, operation in enumerate(stage.operations):
            if isinstance(operation, Linear):
                rows = buffers[operation.input]
                yield operation, rows.reshape(-1, operation.in_features)
            run_span(stage, place, place + 1, buffers, context)
        flowing |= {name: buffers[name] for name in stage.outputs}


def second_moment(rows: NDArray[np.float32]) -> Floats:
    exact = rows.astype(np.float64)
    return exact.T @ exact / len(exact)


@pytest.mark.parametrize("left", [(), ("k_proj", "embed"), ("v_proj", "up_proj")], ids=str)
def test_every_layer_is_calibrated_on_the_model_as_its_users_will_run_it(
    left: tuple[str, ...], request_of_tiny: QuantizeRequest, moments: list[Floats]
) -> None:
    """Each group's H is that of its inputs in the finished, quantized model: embedding, earlier
    blocks and earlier groups of its own block quantized or left float, none skipped, none twice."""
    request_of_tiny = replace(request_of_tiny, tensor=tuple((name, "float") for name in left))
    quantize(request_of_tiny)
    finished = open_model(str(request_of_tiny.out))
    tokens = draw(finished, request_of_tiny.calibration).tokens
    assert len(moments) == 3 * 4 + 1
    for group, (_, rows) in zip(GROUP_OF_LAYER, inputs_of_linears(finished, tokens), strict=True):
        exact = second_moment(rows)
        # f32 activations in batches of another shape: some roundings of the largest entry.
        np.testing.assert_allclose(moments[group], exact, rtol=0, atol=1e-5 * exact.max())


def test_every_layers_tokens_count_by_its_own_gradients(
    request_of_tiny: QuantizeRequest, moments: list[Floats], tmp_path: Path
) -> None:
    """The weights are those of the float model's loss, the inputs the quantized model's."""
    request = replace(request_of_tiny, solve=SolveSettings())
    quantize(request)
    model, finished = open_model(request.model), open_model(str(request.out))
    tokens = draw(model, request.calibration).tokens
    weights = GradientPass(model.checkpoint, tokens, tmp_path / "pass").run(0.5)
    together: dict[int, list[Linear]] = {}
    for group, (linear, rows) in zip(
        GROUP_OF_LAYER, inputs_of_linears(finished, tokens), strict=True
    ):
        together.setdefault(group, []).append(linear)
        if group in (0, 5, 11, 12) and len(together[group]) == IN_BLOCK.count(group % 4) % 4:
            roots = np.sqrt(weights.of(together[group]))[:, None]
            exact = second_moment(rows * roots)
            np.testing.assert_allclose(moments[group], exact, rtol=0, atol=1e-4 * exact.max())


def test_a_run_that_is_stopped_while_it_weighs_tokens_continues_to_the_same_bytes(
    request_of_tiny: QuantizeRequest, tmp_path: Path
) -> None:
    request = replace(request_of_tiny, solve=SolveSettings())
    quantize(replace(request, out=tmp_path / "whole"))
    steps: list[str] = []

    def closing(step: Progress) -> None:
        steps.append(step.doing)
        if len(steps) == 6:
            raise ConnectionError("window closed")

    with pytest.raises(ConnectionError):
        quantize(request, progress=closing)
    assert steps[-1].endswith("gradients")
    left = list(request.out.with_name("out.partial").glob("gradients/*.npy"))
    assert left
    quantize(request)
    for path in sorted((tmp_path / "whole").iterdir()):
        assert path.read_bytes() == (request.out / path.name).read_bytes(), path.name


def test_weights_that_are_not_finite_are_refused_before_tokens_are_weighed(
    tmp_path: Path,
) -> None:
    tensors = make_tensors(tied=False)
    name = "model.layers.2.mlp.down_proj.weight"
    tensors[name][1, 2] = np.nan
    model = write_checkpoint(tmp_path / "tiny", tensors)
    steps: list[str] = []
    request = replace(REQUEST, model=str(model), out=tmp_path / "out", solve=SolveSettings())
    with pytest.raises(SolveError, match=r"down_proj\.weight\[1, 2\].*not finite"):
        quantize(request, progress=lambda step: steps.append(step.doing))
    assert not any("gradients" in step for step in steps)
    assert not request.out.with_name("out.partial").exists()


def test_the_float_models_inputs_would_be_other_ones(
    request_of_tiny: QuantizeRequest, moments: list[Floats]
) -> None:
    """So that the test above can tell the difference."""
    quantize(request_of_tiny)
    model = open_model(request_of_tiny.model)
    tokens = draw(model, request_of_tiny.calibration).tokens
    last = [second_moment(rows) for _, rows in inputs_of_linears(model, tokens)][-1]
    assert np.abs(moments[-1] - last).max() > 0.01 * last.max()


def test_the_recorded_error_is_the_layers_output_error(
    request_of_tiny: QuantizeRequest, moments: list[Floats]
) -> None:
    """tr(D H D^T) / tr(W H W^T), with the weights that were stored; W as the checkpoint has it."""
    request_of_tiny = replace(request_of_tiny, solve=replace(REQUEST.solve, asymmetric=False))
    result = quantize(request_of_tiny)
    before, after = open_model(request_of_tiny.model), open_model(str(request_of_tiny.out))
    names = [linear.weight for linear in after.plan.linears()]
    for name, group in zip(names, GROUP_OF_LAYER, strict=True):
        weights = before.checkpoint.tensors.read_float(name).astype(np.float64)
        moved = weights - after.checkpoint.tensors.read_float(name)
        hessian = moments[group]
        exact = np.trace(moved @ hessian @ moved.T) / np.trace(weights @ hessian @ weights.T)
        record = result.manifest["tensors"][name]
        assert record["relative_error"] == pytest.approx(exact, rel=1e-3), name
        assert record["shape"] == list(weights.shape)
        assert record["zero_share"] == pytest.approx(np.mean(weights == moved), abs=1e-12)


def test_gptq_leaves_less_error_than_rounding_in_every_layer(
    request_of_tiny: QuantizeRequest, moments: list[Floats]
) -> None:
    solved = quantize(request_of_tiny).manifest["tensors"]
    rounding = SolveSettings(method=Method.ROUND)
    quantize(replace(request_of_tiny, solve=rounding, out=request_of_tiny.out.with_name("rounded")))
    before = open_model(request_of_tiny.model).checkpoint.tensors
    after = open_model(str(request_of_tiny.out.with_name("rounded"))).checkpoint.tensors
    for name, group in ((QUERY, 4), (DOWN, 11), (HEAD, 12)):
        weights = before.read_float(name).astype(np.float64)
        moved = weights - after.read_float(name)
        hessian = moments[group]
        rounded = np.trace(moved @ hessian @ moved.T) / np.trace(weights @ hessian @ weights.T)
        assert solved[name]["relative_error"] < 0.8 * rounded, name


def test_rows_solved_apart_are_the_rows_solved_together(
    request_of_tiny: QuantizeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wide embeddings and heads are solved some tiles at a time; by rounding, bit for bit."""
    request = replace(request_of_tiny, solve=SolveSettings(method=Method.ROUND))
    quantize(request)
    monkeypatch.setattr(quantize_run, "ROWS_AT_ONCE", 64)
    apart = replace(request, out=request.out.with_name("apart"))
    quantize(apart)
    for name in ("model.safetensors", "manifest.json"):
        assert (apart.out / name).read_bytes() == (request.out / name).read_bytes()


def test_the_size_of_a_batch_changes_no_more_than_roundings(
    request_of_tiny: QuantizeRequest, moments: list[Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(request_of_tiny)
    monkeypatch.setattr(whole_texts, "BATCH_TOKENS", 100)
    quantize(replace(request_of_tiny, out=request_of_tiny.out.with_name("small")))
    together, apart = moments[:13], moments[13:]
    np.testing.assert_allclose(apart[0], together[0], rtol=0, atol=1e-6 * together[0].max())


def test_a_finished_job_is_not_done_again(
    request_of_tiny: QuantizeRequest, moments: list[Floats]
) -> None:
    first = quantize(request_of_tiny)
    count = len(moments)
    again = quantize(request_of_tiny)
    assert (first.already_done, again.already_done) == (False, True)
    assert len(moments) == count
    assert replace(again, already_done=False) == first


def test_the_manifest_says_where_the_model_came_from(request_of_tiny: QuantizeRequest) -> None:
    result = quantize(request_of_tiny)
    model = open_model(request_of_tiny.model)
    job = result.manifest["job"]
    assert job["source_sha256"] == model.checkpoint.sha256()
    assert (job["bits"], job["group_size"], job["zero"]) == (3, 32, "fixed")
    assert job["calibration"]["sha256"] == draw(model, request_of_tiny.calibration).sha256()
    assert job["calibration"]["sequences"] == 8
    (source,) = result.manifest["calibration_sources"]
    assert (source["name"], source["sequences"]) == ("excerpt-calibration", 8)
    assert set(result.manifest["tensors"]) == {
        spec.name for spec in model.plan.tensors() if spec.matrix
    }
    assert result.manifest["fallbacks"] == []
    size = (request_of_tiny.out / "model.safetensors").stat().st_size
    assert result.file_bytes == size
    assert result.bits_per_weight == 8 * size / model.plan.parameters()
    stored = sum(record["bytes"] for record in result.manifest["tensors"].values())
    assert 0 < size - stored < 12_000  # norms and the header


def test_rounding_needs_neither_text_nor_tokenizer(request_of_tiny: QuantizeRequest) -> None:
    (Path(request_of_tiny.model) / "tokenizer.json").unlink()
    nothing = Calibration("no-such-text", sequences=0)
    rounding = SolveSettings(method=Method.ROUND)
    result = quantize(replace(request_of_tiny, solve=rounding, calibration=nothing))
    assert result.manifest["job"]["calibration"] is None
    assert result.manifest["calibration_sources"] == []
    assert {record["relative_error"] for record in result.manifest["tensors"].values()} == {None}


def test_each_stage_has_its_own_bits(request_of_tiny: QuantizeRequest) -> None:
    plan = open_model(request_of_tiny.model).plan
    request = replace(request_of_tiny, embedding=6, head=5)
    formats = choose_formats(plan, request)
    assert formats[EMBEDDING].name == "int6-g32-fixed"
    assert formats[HEAD].name == "int5-g32-fixed"
    assert {format.bits for name, format in formats.items() if "layers" in name} == {3}


def test_a_tied_head_follows_the_embedding(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "tied")
    request = replace(REQUEST, model=str(model), out=tmp_path / "out", head=2)
    formats = choose_formats(open_model(str(model)).plan, request)
    assert HEAD not in formats
    assert formats[EMBEDDING].bits == 8


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"bits": 7}, "blocks: no format has this many bits"),
        ({"embedding": 1}, "embedding: no format"),
        ({"head": 9}, "head: no format"),
        ({"group_size": 48}, "no format has this group size"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_is_refused_when_it_is_made(
    wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        replace(REQUEST, **wrong)


def test_the_cost_is_told_before_any_progress(request_of_tiny: QuantizeRequest) -> None:
    told: list[str] = []
    quantize(
        request_of_tiny, lambda step: told.append(step.doing), lambda cost: told.append("cost")
    )
    assert told[0] == "cost"
    assert told[1:3] == ["calibration text", EMBEDDING]
    assert told.count("cost") == 1


def test_a_listener_that_fails_stops_the_run_and_loses_nothing(
    request_of_tiny: QuantizeRequest,
) -> None:
    """A window that was closed, for example; the next run continues."""
    seen: list[str] = []

    def closing(step: Progress) -> None:
        seen.append(step.doing)
        if len(seen) == 8:
            raise ConnectionError("window closed")

    with pytest.raises(ConnectionError):
        quantize(request_of_tiny, progress=closing)
    assert list(request_of_tiny.out.with_name("out.partial").glob("tensors/*"))
    quantize(request_of_tiny)


@pytest.mark.parametrize(
    ("bits", "codes"), [(3, "lut"), (4, "nf4"), (4, "fp4"), (3, "super"), (4, "mxfp4")]
)
def test_tables_are_solved_stored_and_run(
    bits: int, codes: str, request_of_tiny: QuantizeRequest
) -> None:
    request = replace(request_of_tiny, bits=bits, codes=codes, embedding=8, head=8)
    quantize(request)
    model = open_model(request.out)
    entry = model.checkpoint.tensors.entry(QUERY)
    assert isinstance(entry, StoredPacked)
    assert entry.format.row.name == (codes if codes in CATALOG else f"{codes}{bits}")
    default = CATALOG[entry.format.row.name].table
    assert (entry.format.row.table != default) == entry.format.row.learned
    down = model.checkpoint.tensors.entry(DOWN)
    assert isinstance(down, StoredPacked)
    assert (down.format.row.table != entry.format.row.table) == entry.format.row.learned
    assert quantize(request).already_done
    with load(request.out) as running:
        assert running.generate("The sea", max_tokens=4).completion_tokens == 4
