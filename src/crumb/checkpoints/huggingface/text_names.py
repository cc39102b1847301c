"""Names of tensors as the Plan has them, where a file puts other words before them.

In: arrays by the names of their files, and a Plan. Out: the same arrays, by the Plan's names where
all of the model has another prefix: the text part of a model that also sees, or no prefix at all.
Refuses nothing: a name that fits nowhere stays, and is judged with all others.
"""

from __future__ import annotations

from collections.abc import Mapping

from crumb.architectures.plan import Plan
from crumb.checkpoints.safetensors import StoredArray


def with_plan_names(arrays: Mapping[str, StoredArray], plan: Plan) -> dict[str, StoredArray]:
    """Arrays by the names that the Plan reads."""
    names = {spec.name for spec in plan.tensors()}
    vectors = [spec.name for spec in plan.tensors() if not spec.matrix]
    sign = vectors[0] if vectors else ""
    base, _, tail = sign.partition(".")
    prefixes = {
        name.removesuffix(tail) for name in arrays if name == tail or name.endswith(f".{tail}")
    }
    if sign in arrays or not prefixes:
        return dict(arrays)

    def fitting_vectors(prefix: str) -> int:
        return sum(f"{prefix}{name.removeprefix(f'{base}.')}" in arrays for name in vectors)

    # What sees may have blocks too, under a prefix of its own.
    prefix = max(sorted(prefixes), key=fitting_vectors)
    outer = prefix.removesuffix(f"{base}.") if prefix.endswith(f"{base}.") else prefix
    renamed: dict[str, StoredArray] = {}
    for name, array in arrays.items():
        inside = f"{base}.{name.removeprefix(prefix)}" if name.startswith(prefix) else ""
        beside = name.removeprefix(outer)
        fitting = [each for each in (name, inside, beside) if each in names]
        renamed[fitting[0] if fitting else inside or name] = array
    return renamed
