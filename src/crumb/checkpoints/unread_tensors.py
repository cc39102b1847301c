"""Tensors of a checkpoint that its Plan does not read: harmless, worth a word, or refused.

In: names and entries, a Plan. Out: a CrumbWarning for tensors outside the model that is run.
Refuses tensors beside those that the Plan reads, such as biases, norms and adapters of its layers:
without them the weights are another model's. HARMLESS has those that change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crumb.architectures.plan import Plan
from crumb.errors import CheckpointError, warn

HARMLESS = tuple(
    re.compile(pattern)
    for pattern in (
        r"\brotary_emb\.(original_)?(inv_freq|cos_cached|sin_cached)$",  # follow from config.json
        r"\.attn(\.attention)?\.(bias|masked_bias|causal_mask|embed_positions)$",  # masks, angles
        r"\.attention\.(bias|masked_bias)$",
        r"\.(input|output|q|k|v|prob|attn)_(scale|zero_point)$",  # of 8-bit activations and caches
        r"^(blk\.0\.time_mix_v[012]\.weight|model\.layers\.0\.attn\.v_lora\..*)$",  # RWKV-7's first
        r"^blk\.\d+\.(attn_rot_embd|attn\.rot_embd)\.weight$",  # old GGUF: what the keys say
    )
)
"""Names whose values change nothing here."""

BLOCK = re.compile(r"(.*?\.\d+\.)")
"""The block that a tensor belongs to."""

SHOWN = 3


def check_unread(
    path: Path,
    names: Iterable[str],
    plan: Plan,
    read: Callable[[str], NDArray[np.float32]],
) -> None:
    """Refuse or tell of what a plan leaves unread; `read` gives a tensor in f32.

    Raises: CheckpointError.
    """
    used = {spec.name for spec in plan.tensors()}
    unread = [name for name in names if name not in used and not is_harmless(name)]
    modules = {_module(name) for name in used}
    inside = [
        name
        for name in unread
        if not modules.isdisjoint(_modules_above(name)) and not _adds_nothing(name, used, read)
    ]
    if inside:
        raise CheckpointError(
            "the checkpoint has tensors that its configuration does not speak of, and without "
            "them it is another model",
            where=path,
            expected=f"the tensors of a {plan.family} model",
            found=_listed(inside),
            do="Take the config.json that belongs to these weights; merge adapters into the "
            "weights first",
        )
    outside = [name for name in unread if modules.isdisjoint(_modules_above(name))]
    if outside:
        warn(
            "tensors that this model does not use are left aside",
            where=path,
            found=_listed(outside),
        )


def is_harmless(name: str) -> bool:
    """Whether a tensor of this name changes nothing."""
    return any(pattern.search(name) for pattern in HARMLESS)


def _module(name: str) -> str:
    """The block of a tensor, or the module itself where it is in none."""
    block = BLOCK.match(name)
    return block[1] if block else name.rpartition(".")[0] + "."


def _modules_above(name: str) -> set[str]:
    """Blocks and modules that a tensor may be a part of."""
    block = BLOCK.match(name)
    places = [place for place, letter in enumerate(name) if letter == "."]
    return {block[1]} if block else {name[: place + 1] for place in places}


def _adds_nothing(name: str, used: set[str], read: Callable[[str], NDArray[np.float32]]) -> bool:
    """Whether this is a bias of zeros, which GPTQ writers leave beside every layer."""
    module, _, kind = name.rpartition(".")
    return kind == "bias" and f"{module}.weight" in used and not read(name).any()


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
