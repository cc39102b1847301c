"""Load a model by its name, with an engine that fits what the machine has.

In: a path or a name of the hub, and what is to be known of the engine. Out: a LanguageModel.
Refuses what the checkpoint readers and the memory refuse.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from crumb.architectures.plan import Plan
from crumb.checkpoints.huggingface.hub import locate
from crumb.checkpoints.opening import open_checkpoint
from crumb.run.language_model import LanguageModel
from crumb.run.memory_plan import (
    ActivationKind,
    CacheKind,
    EngineSettings,
    WeightsKind,
    chosen_kind,
)

DEFAULT_CONTEXT_TOKENS = 4096
"""Context of a loaded model that may have more positions; the cache is planned for it."""

DEFAULT_LOGITS_ROWS = 16


def load(
    model: str | Path,
    *,
    context_tokens: int | None = None,
    sequences: int = 1,
    cache: CacheKind | str = CacheKind.F16,
    activations: ActivationKind | str = ActivationKind.INT8,
    weights: WeightsKind | str = WeightsKind.MAPPED,
    threads: int | None = None,
    cache_converted: bool = False,
    cache_dir: str | Path | None = None,
) -> LanguageModel:
    """Load a model: a directory, org/name, or org/name@revision.

    context_tokens: of each sequence; sequences: how many of that length the cache has room for
    (shorter ones share it, so more may run at once); cache: f16, int8 or f32; activations: int8,
    or f32 for exact products; weights: mapped, or copied into memory of the process; threads: all
    processors by default; cache_converted: tiles of another container's matrices are kept in a
    file beside the model, and mapped by the next load; cache_dir: a directory where what was read
    of conversations stays, so that they go on at once after the next load.
    Raises: ModelNotFound, CheckpointError, UsageError, DoesNotFit.
    """
    checkpoint = open_checkpoint(locate(str(model)), cache_converted)
    settings = engine_settings(
        checkpoint.plan,
        context_tokens,
        sequences,
        chosen_kind(CacheKind, cache, "cache"),
        chosen_kind(ActivationKind, activations, "activations"),
        chosen_kind(WeightsKind, weights, "weights"),
    )
    converted = None if cache_dir is None else Path(cache_dir)
    return LanguageModel(checkpoint, replace(settings, threads=threads, cache_dir=converted))


def engine_settings(
    plan: Plan,
    context_tokens: int | None = None,
    sequences: int = 1,
    cache: CacheKind = CacheKind.F16,
    activations: ActivationKind = ActivationKind.INT8,
    weights: WeightsKind = WeightsKind.MAPPED,
) -> EngineSettings:
    """How the engine of a loaded model is built, where not told otherwise. Raises: UsageError."""
    default = min(DEFAULT_CONTEXT_TOKENS, plan.max_positions)
    settings = EngineSettings(
        context_tokens=default if context_tokens is None else context_tokens,
        sequences=sequences,
        cache=cache,
        activations=activations,
        weights=weights,
    )
    return replace(settings, logits_rows=max(sequences, DEFAULT_LOGITS_ROWS))
