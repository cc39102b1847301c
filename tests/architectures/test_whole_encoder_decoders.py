"""Calibration of families that read a source: each half walked with its own tokens.

In: tiny models, pairs of two shapes. Out: what every group of linear layers reads, close to what
the array executor gives it; the same bits however pairs are batched; less divergence by GPTQ than
by rounding for the matrices of each kind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from source_models import write_source_model
from tiny_models import ENCODER_DECODERS, make_sources, make_tokens, write_model

import crumb
from crumb.calibrate.walk import LinearGroup, layer_groups, walk_model
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import UsageError
from crumb.evaluation.scores import score
from crumb.operations.linear import Linear
from crumb.operations.operation import Context
from crumb.run.array_executor import run_operation
from crumb.run.model import Model, start_buffers
from crumb.texts.pairs import PairRows, PairTokens

UNIT = 2.0**-24


@pytest.fixture(params=["t5", "t5-gated"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    return open_checkpoint(write_model(tmp_path, ENCODER_DECODERS[request.param]))


def pairs(checkpoint: Checkpoint) -> PairTokens:
    """Four pairs of one shape, two of another."""
    sources, tokens = make_sources(checkpoint.configuration), make_tokens(checkpoint.configuration)
    first = np.concatenate(
        [sources.reshape(2, -1)[:, :136].reshape(4, 68), tokens[:, :104].reshape(4, 52)], axis=1
    )
    second = np.concatenate([sources[:, :17], tokens[:, :40]], axis=1)
    return PairTokens((PairRows(first, 68), PairRows(second, 17)))


def expected_inputs(model: Model, rows: PairRows) -> Iterator[NDArray[np.float32]]:
    """What every group reads, by the array executor: (pairs * tokens, features)."""
    buffers: dict[str, Any] = start_buffers(rows.inputs) | {"source": rows.sources}
    for stage in model.plan.stages:
        context = Context(model.stage_weights(stage))
        firsts = {group.first for group in layer_groups(stage)}
        for index, operation in enumerate(stage.operations):
            if index in firsts:
                assert isinstance(operation, Linear)
                read = buffers[operation.input]
                yield read.reshape(-1, read.shape[-1])
            run_operation(operation, buffers, context)


def inputs(checkpoint: Checkpoint, tokens: PairTokens) -> list[NDArray[np.float32]]:
    return [np.concatenate(walk.inputs(group)) for walk, group in walk_model(checkpoint, tokens)]


def test_every_group_reads_what_the_array_executor_gives_it(checkpoint: Checkpoint) -> None:
    model, tokens = Model(checkpoint), pairs(checkpoint)
    walked = inputs(checkpoint, tokens)
    by_rows = [list(expected_inputs(model, rows)) for rows in tokens.groups]
    assert len(walked) == len(by_rows[0]) == len(by_rows[1])
    of_source, of_target = 4 * 68 + 2 * 17, 4 * 51 + 2 * 39
    assert {len(each) for each in walked} == {of_source, of_target}
    for native, *exact in zip(walked, *by_rows, strict=True):
        together = np.concatenate(exact)
        bound = 2000 * math.sqrt(150) * UNIT * float(np.abs(together).max())
        np.testing.assert_allclose(native, together, rtol=0, atol=bound)


def test_batches_and_lanes_change_no_bit(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = pairs(checkpoint)
    together = inputs(checkpoint, tokens)
    for processors, batch in ((1, 1), (3, 68)):
        monkeypatch.setattr("crumb.run.lanes.processors", lambda count=processors: count)
        monkeypatch.setattr("crumb.run.whole_texts.BATCH_TOKENS", batch)
        for one, other in zip(together, inputs(checkpoint, tokens), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_keys_of_the_memory_are_calibrated_on_what_was_read(checkpoint: Checkpoint) -> None:
    tokens = pairs(checkpoint)
    read = sum(each.sources.size for each in tokens.groups)
    for walk, group in walk_model(checkpoint, tokens):
        if isinstance(group, LinearGroup) and "EncDec" in group.linears[0].weight:
            of_memory = not group.linears[0].weight.endswith(("q.weight", "o.weight"))
            assert (walk.statistics(group).tokens == read) is of_memory


QUICK = {"group_size": 32, "sequences": 24, "length_tokens": 128, "pack": False}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """The float model, and that in 3 bits by both methods."""
    folder = tmp_path_factory.mktemp("t5")
    source = write_source_model(folder / "float")
    made = {"float": open_checkpoint(source)}
    for method in ("gptq", "round"):
        crumb.quantize(
            source,
            out=folder / method,
            bits=3,
            method=method,
            calibration="excerpt-calibration",
            **QUICK,
        )
        made[method] = open_checkpoint(folder / method)
    return made


def kind_of(name: str) -> str:
    """A matrix's name without its block's number."""
    return re.sub(r"block\.\d+\.", "", name)


def test_gptq_diverges_less_than_rounding_in_the_matrices_of_each_kind(
    quantized: dict[str, Checkpoint],
) -> None:
    from crumb.evaluation.pair_windows import cut_pair_windows
    from crumb.requests.evaluate_request import EvaluateRequest
    from crumb.texts.hub_texts import Use
    from crumb.texts.sources import read_text

    exact = quantized["float"]
    asked = EvaluateRequest("t5", window_tokens=128, limit_windows=12)
    (windows,) = cut_pair_windows(
        Model(exact), read_text("excerpt-evaluation", Use.EVALUATION), asked
    )
    kinds = sorted({kind_of(each.weight) for each in exact.plan.linears()} - {"lm_head.weight"})
    assert len(kinds) == 7 + 11

    def with_kind(kind: str, method: str) -> Model:
        entries = dict(exact.tensors.entries)
        for name in entries:
            if kind_of(name) == kind:
                entries[name] = quantized[method].tensors.entry(name)
        return Model(replace(exact, tensors=replace(exact.tensors, entries=entries)))

    models = [
        Model(exact),
        *(with_kind(kind, each) for kind in kinds for each in ("gptq", "round")),
    ]
    scores = score(models, windows.tokens, windows.first_scored, True)
    divergences = [
        float(each.divergence.mean()) for each in scores[1:] if each.divergence is not None
    ]
    by_kind = dict(zip(kinds, zip(divergences[::2], divergences[1::2], strict=True), strict=True))
    assert all(0 < gptq < rounded for gptq, rounded in by_kind.values()), by_kind


def test_a_quantized_model_is_evaluated_on_spans_and_on_pairs(
    quantized: dict[str, Checkpoint], tmp_path: Path
) -> None:
    path, reference = (str(quantized[each].path) for each in ("gptq", "float"))
    asked: dict[str, Any] = {"text": "excerpt-evaluation", "window_tokens": 96, "limit_windows": 3}
    spans = crumb.evaluate(path, reference, **asked)
    assert spans.protocol == "t5-spans"
    assert spans.divergence is not None
    array = crumb.evaluate(path, reference, executor="array", **asked)
    assert array.divergence is not None
    assert array.divergence.kl.value == pytest.approx(spans.divergence.kl.value, rel=1e-4)
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        '{"source": "the sea", "target": "was calm"}\n{"source": "a", "target": "b c d"}\n'
    )
    of_pairs = crumb.evaluate(path, reference, text=str(file))
    assert (of_pairs.protocol, of_pairs.windows) == ("pairs", 2)
    with crumb.load(reference, activations="f32", cache="f32", threads=1) as model:
        scored = model.score(["the sea", "a"], ["was calm", "b c d"])
        tokens = sum(len(each.tokens) - 1 for each in scored)
        exact = crumb.evaluate(reference, text=str(file))
        assert exact.scored_tokens == tokens
        loss = -sum(each.logprob for each in scored) / tokens
        assert math.log(exact.perplexity.value) == pytest.approx(loss, abs=1e-5)
    with pytest.raises(UsageError, match="no such protocol"):
        crumb.evaluate(path, protocol="llama.cpp", text="excerpt-evaluation")


def test_what_is_done_for_decoders_alone_is_refused(
    quantized: dict[str, Checkpoint], tmp_path: Path
) -> None:
    for options in ({"bits": 3, "effort": "best"}, {"bits_per_weight": 4.0}):
        with pytest.raises(UsageError, match="no codes are trained"):
            crumb.quantize(quantized["float"].path, out=tmp_path / "out", **options)


def test_a_stopped_run_goes_on_to_the_same_bytes(
    quantized: dict[str, Checkpoint], tmp_path: Path
) -> None:
    source, out = quantized["float"].path, tmp_path / "gptq"
    asked: dict[str, Any] = {"bits": 3, "calibration": "excerpt-calibration", **QUICK}

    def stop(progress: Any) -> None:
        if "decoder.block.0.layer.1" in progress.doing:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crumb.quantize(source, out=out, progress=stop, **asked)
    assert not out.exists()
    crumb.quantize(source, out=out, **asked)
    whole = quantized["gptq"].path
    for file in sorted(whole.glob("*.safetensors")):
        assert (out / file.name).read_bytes() == file.read_bytes()


def test_a_quantized_model_writes_the_same_in_company_with_guesses_and_threads(
    quantized: dict[str, Checkpoint],
) -> None:
    texts = ["the sea " * 30, "Who was the captain of the ship?", "a a a a", "a b c d e f " * 10]
    answers = []
    for threads, sequences, guesses in ((1, 1, False), (1, 4, True), (3, 4, False)):
        with crumb.load(quantized["gptq"].path, threads=threads, sequences=sequences) as model:
            asked = {"max_tokens": 90, "ignore_end": True, "speculate": guesses}
            made = (
                model.generate(texts, **asked)
                if sequences > 1
                else [model.generate(each, **asked) for each in texts]
            )
            answers.append([each.tokens for each in made])
            if guesses:
                assert sum(each.accepted_tokens for each in made) > 0
    assert answers[0] == answers[1] == answers[2]
    assert all(len(tokens) == 90 for tokens in answers[0])
