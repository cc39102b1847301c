"""A probe runs a few blocks of each kind and counts them as often as the model has them.

In: plans of recorded models, the embedded model, steps whose seconds are made up. Out: tokens per
second worked out by hand, and a real probe.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recorded_models import recorded_configuration
from tiny_models import MISTRAL

from crumb.architectures.registry import plan_of
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.opening import open_checkpoint
from crumb.embedded import MODELS
from crumb.errors import UsageError
from crumb.fitting import speed_probe
from crumb.fitting.speed_probe import (
    CHUNK_TOKENS,
    HEAD_ROWS,
    StepSeconds,
    decode_seconds,
    probe_speed,
    prompt_seconds,
)
from crumb.requests.quantize_request import QuantizeRequest, choose
from crumb.run.load import engine_settings
from crumb.run.memory_plan import EngineSettings

BLOCK_SECONDS, HEAD_SECONDS, BEHIND = 0.5, 0.25, 0.1


def made_up(checkpoint: Checkpoint, settings: EngineSettings) -> tuple[float, StepSeconds]:
    """Each block takes BLOCK_SECONDS for a step and ten times as long for a chunk.

    Behind a chunk it takes BEHIND more, for a token of one sequence or for a chunk.
    """
    assert settings.sequences >= 1
    blocks = len(checkpoint.plan.stages) - 2
    near, behind = blocks * BLOCK_SECONDS, blocks * BEHIND
    return HEAD_SECONDS, StepSeconds(10 * near, 10 * near + behind, near, near + 2 * behind)


@pytest.mark.parametrize("sequences", [1, 4])
def test_blocks_and_rows_of_the_head_count_as_often_as_the_model_has_them(
    sequences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed_probe, "_measured", made_up)
    plan = plan_of(recorded_configuration("llama-2-13b"))
    formats = choose(plan, QuantizeRequest("", Path(), bits=4)).formats
    settings = engine_settings(plan, 4096, sequences)
    speed = probe_speed(plan, formats, {}, settings, 3 * CHUNK_TOKENS)
    assert speed is not None
    head = HEAD_SECONDS * 32000 / HEAD_ROWS
    step = 40 * (BLOCK_SECONDS + sequences * 3 * BEHIND)
    assert speed.decode_tokens_per_second == pytest.approx(sequences / (step + head))
    chunks = 40 * (3 * 10 * BLOCK_SECONDS + (1 + 2) * BEHIND)
    assert speed.prompt_tokens_per_second == pytest.approx(3 * CHUNK_TOKENS / (chunks + head))


def test_blocks_of_different_kinds_are_measured_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def remember(checkpoint: Checkpoint, settings: EngineSettings) -> tuple[float, StepSeconds]:
        asked.append(len(checkpoint.plan.stages) - 2)
        return made_up(checkpoint, settings)

    monkeypatch.setattr(speed_probe, "_measured", remember)
    plan = plan_of(recorded_configuration("llama-65b"))
    formats = choose(
        plan, QuantizeRequest("", Path(), bits=4, tensor=((".layers.7.", "int8-g128-fixed"),))
    ).formats
    speed = probe_speed(plan, formats, {}, engine_settings(plan, 1024))
    assert asked == [1, 1]  # a block of 65 billion parameters is larger than any cache
    head = HEAD_SECONDS * 32000 / HEAD_ROWS
    assert speed is not None
    step = 80 * (BLOCK_SECONDS + BEHIND) + head
    assert speed.decode_tokens_per_second == pytest.approx(1 / step)


def test_kinds_that_a_cache_would_hold_alone_are_measured_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def remember(checkpoint: Checkpoint, settings: EngineSettings) -> tuple[float, StepSeconds]:
        asked.append(len(checkpoint.plan.stages) - 2)
        return made_up(checkpoint, settings)

    monkeypatch.setattr(speed_probe, "_measured", remember)
    plan = open_checkpoint(MODELS["novella-7m"]).plan
    mix = QuantizeRequest("", Path(), bits=4, tensor=((".layers.1.", "int8-g128-fixed"),))
    formats = choose(plan, mix).formats
    blocks = len(plan.stages) - 2
    assert len(speed_probe._kinds(plan.stages[1:-1], formats)) == 2
    speed = probe_speed(plan, formats, {}, engine_settings(plan, 1024))
    assert asked == [blocks]
    head = HEAD_SECONDS * plan.vocabulary / min(plan.vocabulary, HEAD_ROWS)
    assert speed is not None
    step = blocks * (BLOCK_SECONDS + BEHIND) + head
    assert speed.decode_tokens_per_second == pytest.approx(1 / step)


def test_a_window_bounds_what_a_step_reads() -> None:
    seconds = StepSeconds(2.0, 2.5, 1.0, 1.25)
    narrow = plan_of(MISTRAL | {"sliding_window": 100}).stages[1:2]
    assert prompt_seconds(narrow, seconds, 64, 64) == 2.0
    assert prompt_seconds(narrow, seconds, 64, 32) == (2.0 - 0.25 + 0.125) / 2
    far = 2.0 + 0.5 * (100 - 32) / 64  # a window's width, where the first chunk read 32 tokens
    assert prompt_seconds(narrow, seconds, 64, 192) == pytest.approx(2.0 + (2.5) + far)
    assert decode_seconds(narrow, seconds, 64, 50, 1) == 1.0 + 0.25 / 2
    assert decode_seconds(narrow, seconds, 64, 6400, 2) == 1.0 + 2 * 0.25
    whole = plan_of(MISTRAL | {"sliding_window": None}).stages[1:2]
    assert decode_seconds(whole, seconds, 64, 6400, 2) == 1.0 + 2 * 0.25 * 50


@pytest.mark.parametrize("bits", [None, 3])
def test_a_real_probe_gives_speeds(bits: int | None) -> None:
    plan = open_checkpoint(MODELS["novella-7m"]).plan
    formats = {} if bits is None else choose(plan, QuantizeRequest("", Path(), bits=bits)).formats
    dtypes = dict.fromkeys((spec.name for spec in plan.tensors()), np.dtype(np.float16))
    settings = replace(engine_settings(plan, 1024, 2), threads=1)
    speed = probe_speed(plan, formats, dtypes, settings)
    assert speed is not None
    assert speed.prompt_tokens_per_second > 0
    assert speed.decode_tokens_per_second > 0


def test_what_does_not_run_alone_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UsageError("no")

    monkeypatch.setattr(speed_probe, "_measured", refuse)
    plan = plan_of(recorded_configuration("llama-2-13b"))
    assert probe_speed(plan, {}, {}, engine_settings(plan)) is None
    short = plan_of(recorded_configuration("llama-2-13b") | {"max_position_embeddings": 64})
    assert probe_speed(short, {}, {}, engine_settings(short)) is None
