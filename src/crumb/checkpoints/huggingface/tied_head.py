"""A head that config.json calls the embedding's double although the files hold one of its own.

In: a configuration and entries. Out: the configuration the files mean: untied where the head
differs, which is told; the same where it is equal, and the double is left out.
Refuses nothing: a head that is used is checked like any other tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crumb.architectures.plan import Plan
from crumb.architectures.registry import families, plan_of
from crumb.checkpoints.tensor_map import Entry, TensorMap
from crumb.errors import warn

TIED = "tie_word_embeddings"

WEIGHTS_AT_ONCE = 1 << 22
"""Weights that are compared together."""


def with_own_head(
    configuration: Mapping[str, Any], plan: Plan, tensors: TensorMap
) -> tuple[Mapping[str, Any], Plan, TensorMap]:
    """What the files hold. Raises: CheckpointError."""
    names = families()[plan.family].tensors
    head, embedding = f"{names['head']}.weight", f"{names['embedding']}.weight"
    used = {spec.name for spec in plan.tensors()}
    if head in used and head not in tensors.entries and configuration.get(TIED) is True:
        return configuration, plan, _with_double(tensors, embedding, head)
    if head in used or head not in tensors.entries or embedding not in tensors.entries:
        return configuration, plan, tensors
    if _equal(tensors, head, embedding):
        entries: dict[str, Entry] = {**tensors.entries}
        del entries[head]
        return configuration, plan, TensorMap(tensors.path, entries)
    warn(
        f"the head differs from the embedding, so it is used, though {TIED} holds",
        where=f"{tensors.path}: {head}",
    )
    untied = {**configuration, TIED: False}
    return untied, plan_of(untied), tensors


def _with_double(tensors: TensorMap, embedding: str, head: str) -> TensorMap:
    """The embedding as the head too: T5 models that say both, tied and not scaled as tied ones."""
    double = {head: tensors.entries[embedding]} if embedding in tensors.entries else {}
    return TensorMap(tensors.path, {**tensors.entries, **double})


def _equal(tensors: TensorMap, one: str, other: str) -> bool:
    """Whether two tensors hold the same weights; some rows of each are in memory at a time."""
    shape = tensors.entry(one).shape
    if shape != tensors.entry(other).shape or len(shape) != 2:
        return False
    step = max(WEIGHTS_AT_ONCE // max(shape[1], 1), 1)
    pieces = (slice(begin, begin + step) for begin in range(0, shape[0], step))
    return all(
        bool((tensors.read_float(one, rows) == tensors.read_float(other, rows)).all())
        for rows in pieces
    )
