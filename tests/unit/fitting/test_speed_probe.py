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

from crumb.architectures.registry import plan_of
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.opening import open_checkpoint
from crumb.embedded import MODELS
from crumb.errors import UsageError
from crumb.fitting import speed_probe
from crumb.fitting.speed_probe import HEAD_ROWS, PROMPT_TOKENS, StepSeconds, probe_speed
from crumb.requests.quantize_request import QuantizeRequest, choose
from crumb.run.load import engine_settings
from crumb.run.memory_plan import EngineSettings

BLOCK_SECONDS, HEAD_SECONDS = 0.5, 0.25


def made_up(checkpoint: Checkpoint, settings: EngineSettings) -> tuple[StepSeconds, StepSeconds]:
    """Each block takes BLOCK_SECONDS for a step and ten times as long for a prompt."""
    assert settings.sequences >= 1
    blocks = len(checkpoint.plan.stages) - 2
    without = StepSeconds(10 * blocks * BLOCK_SECONDS, blocks * BLOCK_SECONDS)
    return without + StepSeconds(HEAD_SECONDS, HEAD_SECONDS), without


@pytest.mark.parametrize("sequences", [1, 4])
def test_blocks_and_rows_of_the_head_count_as_often_as_the_model_has_them(
    sequences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed_probe, "_measured", made_up)
    plan = plan_of(recorded_configuration("llama-2-13b"))
    formats = choose(plan, QuantizeRequest("", Path(), bits=4)).formats
    speed = probe_speed(plan, formats, {}, engine_settings(plan, 4096, sequences))
    assert speed is not None
    head = HEAD_SECONDS * 32000 / HEAD_ROWS
    assert speed.decode_tokens_per_second == pytest.approx(sequences / (40 * BLOCK_SECONDS + head))
    assert speed.prompt_tokens_per_second == pytest.approx(
        PROMPT_TOKENS / (10 * 40 * BLOCK_SECONDS + head)
    )


def test_blocks_of_different_kinds_are_measured_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def remember(
        checkpoint: Checkpoint, settings: EngineSettings
    ) -> tuple[StepSeconds, StepSeconds]:
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
    assert speed.decode_tokens_per_second == pytest.approx(1 / (80 * BLOCK_SECONDS + head))


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
    short = plan_of(recorded_configuration("llama-2-13b") | {"max_position_embeddings": 32})
    assert probe_speed(short, {}, {}, engine_settings(short)) is None
