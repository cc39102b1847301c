"""`crumb families`: which models run, as a table.

In: nothing. Out: every family with what it is, the containers that hold it and how it was checked.
"""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from importlib import resources
from typing import Annotated, Any

import msgspec

from crumb.architectures.family import Family
from crumb.architectures.registry import families as all_families
from crumb.checkpoints.gguf.architecture_rows import ARCHITECTURE_OF_FAMILY
from crumb.cli.option_groups import ONE_WAY
from crumb.cli.output import print_json, print_table

REAL_FILES = {"gemma3_text": "Gemma 3 270m", "llama": "SmolLM2 135M Instruct"}
"""Family -> the model of it whose own file was run, beside tiny random ones."""

NOTE = """\
Every family is read from a Hugging Face directory and runs in the native engine.
Its tiny random models give the logits of transformers, whole texts and cached decoding both;
those with a GGUF architecture are read from such files, written to them, compared with llama.cpp.
`difference` is the largest between a log-probability of transformers and ours, both in f32:
of a prompt of 64 tokens, and of 64 greedy tokens decoded behind it, which are the same tokens.
transformers has no RWKV-6 and 7: there it is the largest from plain formulas in f64.
`lines` counts those of the family's file. `real file` names a published model that was run too.
docs/adding.md tells how to add a family."""


@cache
def differences() -> dict[str, dict[str, float]]:
    """Family -> what tests/architectures/differences.py measured on its tiny models."""
    file = resources.files("crumb.architectures") / "differences.json"
    measured: dict[str, dict[str, float]] = msgspec.json.decode(file.read_bytes())
    return measured


def families(*, json: Annotated[bool, ONE_WAY] = False) -> None:
    """Show which families of models run.

    Args:
        json: print the table as JSON.
    """
    rows = family_rows()
    if json:
        print_json(rows)
        return
    names = ("model_type", "what it is", "GGUF", "difference", "lines", "real file")
    print_table(
        [f"<{name}" for name in names], [[str(row[name]) for name in names] for row in rows]
    )
    print(NOTE)


def family_rows() -> list[dict[str, Any]]:
    """One record per family file, in alphabetical order."""
    return [family_row(name, family) for name, family in all_families().items()]


def family_row(name: str, family: Family) -> dict[str, Any]:
    """What there is to say of one family."""
    module = importlib.import_module(f"crumb.architectures.{name}")
    positions = {"half": "rotary, halves", "interleaved": "rotary, pairs"}[family.rotary]
    if "theta" not in family.defaults:
        positions = "learned" if "positions" in family.tensors else "slopes"
    if family.encoder is not None:
        positions = "buckets"
    if "query" not in family.tensors and {"bonus", "scan_rate"} & family.tensors.keys():
        positions = "a state"
    architecture = ARCHITECTURE_OF_FAMILY.get(name)
    return {
        "model_type": name,
        "what it is": (module.__doc__ or "").strip().splitlines()[0].partition(": ")[2],
        "norm": family.norm.kind,
        "positions": positions,
        "MLP": "experts" if "router" in family.tensors else "gated" if family.gated else "plain",
        "GGUF": "" if architecture is None else architecture.name,
        "difference": f"{differences()[name]['transformers']:.0e}",
        "lines": len(inspect.getsource(module).splitlines()),
        "real file": REAL_FILES.get(name, ""),
    }
