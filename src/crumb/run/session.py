"""A session of the array executor: one sequence and its state between calls.

In: tokens, and once at the start what an encoder reads. Out: the logits after each token. Keys,
values and recurrent states live in slots of the memory. The oracle of cached decoding.
Refuses sequences longer than the model's positions and tokens outside its vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crumb.operations.operation import as_numpy
from crumb.run.model import Memory, Model


class Session:
    """Cached decoding of one sequence."""

    def __init__(self, model: Model, inputs: Mapping[str, ArrayLike] | None = None) -> None:
        """`inputs` holds the plan's further inputs, each (1, ...)."""
        self.model = model
        arrays = {name: model.as_array(np.asarray(array)) for name, array in (inputs or {}).items()}
        self._memory = Memory(arrays, states={})

    @property
    def length_tokens(self) -> int:
        return self._memory.length_tokens

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens; returns the logits after each, (tokens, vocabulary).

        Raises: UsageError when there are none, the model has no positions left for them, or one
        is outside the vocabulary.
        """
        row = self.model.as_array(np.asarray(tokens, np.int64)[None, :])
        return as_numpy(self.model.forward(row, self._memory)[0, ...])
