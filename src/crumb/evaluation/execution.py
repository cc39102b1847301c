"""What an evaluation runs on: the executor, the activations, the cache.

In: names such as "native" and "int8". Out: an Execution, and the block size that bounds logits.
Refuses names that do not exist and int8 activations of the array executor.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from crumb.errors import UsageError
from crumb.run.memory_plan import ActivationKind, CacheKind, chosen_kind


class ExecutorKind(StrEnum):
    """Who runs the plan."""

    NATIVE = "native"
    ARRAY = "array"


CACHES = {ActivationKind.F32: CacheKind.F32, ActivationKind.INT8: CacheKind.F16}
"""The cache that belongs to activations: exact ones keep exact keys and values."""


@dataclass(frozen=True)
class Execution:
    """How the logits that are scored come about."""

    executor: ExecutorKind = ExecutorKind.NATIVE
    activations: ActivationKind = ActivationKind.F32

    def __post_init__(self) -> None:
        if self.executor is ExecutorKind.ARRAY and self.activations is not ActivationKind.F32:
            raise UsageError(
                "the array executor multiplies in f32",
                where="activations",
                expected=ActivationKind.F32.value,
                found=self.activations.value,
                do="Use the native one",
            )

    @property
    def cache(self) -> CacheKind:
        return CACHES[self.activations]

    def of_reference(self) -> Execution:
        """A reference is always run exactly: what int8 costs shows as divergence from it."""
        return Execution(self.executor)


def make_execution(activations: str, executor: str) -> Execution:
    """An Execution from its names. Raises: UsageError."""
    return Execution(
        chosen_kind(ExecutorKind, executor, "executor"),
        chosen_kind(ActivationKind, activations, "activations"),
    )


BLOCK_BYTES = 32 << 20
"""Most bytes of one model's logits at once, however large its vocabulary."""

MOST_BLOCK_TOKENS, LEAST_BLOCK_TOKENS = 256, 16


def block_tokens(vocabulary: int, length: int) -> int:
    """Tokens whose logits exist at once: what the native engine steps together."""
    fitting = max(LEAST_BLOCK_TOKENS, BLOCK_BYTES // (4 * vocabulary))
    return min(length, fitting, MOST_BLOCK_TOKENS)
