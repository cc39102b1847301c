"""Finds the family files of this folder by themselves and picks the one a configuration names.

In: a configuration. Out: its Plan. Refuses a model_type without a file, saying which there are.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache

import crumb.architectures
from crumb.architectures.builder import build_plan
from crumb.architectures.configuration import Configuration, shown
from crumb.architectures.family import Family
from crumb.architectures.plan import Plan
from crumb.errors import UnknownFamily

LONGEST_NAME = 64
"""Characters of a model_type that are compared with names of families."""


@cache
def families() -> dict[str, Family]:
    """model_type -> Family, for every module of this folder that defines FAMILY."""
    families_by_type: dict[str, Family] = {}
    for module in pkgutil.iter_modules(crumb.architectures.__path__):
        family = getattr(
            importlib.import_module(f"crumb.architectures.{module.name}"), "FAMILY", None
        )
        if isinstance(family, Family):
            families_by_type[family.model_type] = family
    return dict(sorted(families_by_type.items()))


def _nearest(model_type: object) -> str:
    """The families whose names are most like this one, for the message."""
    name = model_type[:LONGEST_NAME] if isinstance(model_type, str) else ""
    near = get_close_matches(name, families(), n=3, cutoff=0.5)
    return f"; the nearest: {', '.join(near)}" if near else ""


WRAPPED = {
    "gemma3": "gemma3_text",
    "llama4": "llama4_text",
    "mistral3": "mistral",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}
"""model_type of a model that also sees -> that of its text part, where it does not say."""

SHARED = ("quantization_config", "dtype", "torch_dtype", "eos_token_id")
"""Keys that may stand outside of the text part."""

OUTER = ("tie_word_embeddings",)
"""Keys of which the outer one holds where there are two."""


def text_part(configuration: Configuration) -> Configuration:
    """The configuration of the language model inside one that also sees; any other as it is."""
    outer, text = configuration.get("model_type"), configuration.get("text_config")
    if not isinstance(text, Mapping) or outer not in WRAPPED:
        return configuration
    shared, above = (
        {key: configuration[key] for key in keys if key in configuration}
        for keys in (SHARED, OUTER)
    )
    return {"model_type": WRAPPED[outer], **shared, **text, **above}


def plan_of(configuration: Configuration) -> Plan:
    """The Plan of a checkpoint's configuration. Raises: UnknownFamily, CheckpointError."""
    configuration = text_part(configuration)
    model_type = configuration.get("model_type")
    family = families().get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnknownFamily(
            "no family file for this model_type",
            where="config.json",
            expected=f"one that `crumb families` lists{_nearest(model_type)}",
            found=shown(model_type),
            do="To add a family, write one file in crumb/architectures (docs/adding.md)",
        )
    return build_plan(family, configuration)
