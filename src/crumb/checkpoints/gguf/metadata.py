"""The metadata of a GGUF file: single keys read with their types checked.

In: key-values as the header holds them. Out: integers, numbers, flags, texts.
Refuses a key that is missing where it is needed, of another type, or out of range; an error names
the file and the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crumb.architectures.configuration import LIMIT, shown
from crumb.checkpoints.gguf.header import Value
from crumb.errors import CheckpointError


@dataclass(frozen=True)
class Metadata:
    """Key-values of one file, and where they come from."""

    path: Path
    values: Mapping[str, Value]

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def refuse(self, key: str, expected: str) -> CheckpointError:
        """The error for one key."""
        value = shown(self.values[key]) if key in self.values else "no such key"
        return CheckpointError(
            "the metadata has no usable value",
            where=f"{self.path}: {key}",
            expected=expected,
            found=value,
        )

    def _of_type(self, key: str, kinds: type | tuple[type, ...], expected: str) -> Any:
        value = self.values.get(key)
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise self.refuse(key, expected)
        return value

    def integer(
        self, key: str, default: int | None = None, lowest: int = 1, highest: int = LIMIT
    ) -> int:
        """A whole number from lowest to highest. Raises: CheckpointError."""
        if default is not None and key not in self.values:
            return default
        expected = f"one integer from {lowest} to {highest}"
        value: int = self._of_type(key, int, expected)
        if not lowest <= value <= highest:
            raise self.refuse(key, expected)
        return value

    def integers(self, key: str, default: int, count: int) -> list[int]:
        """As many whole numbers, of 0 and more; one stands for all. Raises: CheckpointError."""
        value = self.values.get(key, default)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.ndim == 1:
            each = [int(number) for number in value]
        else:
            each = [self.integer(key, default, lowest=0)] * count
        if len(each) != count or not all(0 <= number <= LIMIT for number in each):
            raise self.refuse(key, f"{count} integers, one for each block")
        return each

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; an f32 as the shortest decimal that is rounded to it.

        Raises: CheckpointError.
        """
        if default is not None and key not in self.values:
            return default
        expected = "one finite number"
        value = self._of_type(key, (int, float), expected)
        if not np.isfinite(value):
            raise self.refuse(key, expected)
        with np.errstate(over="ignore"):
            single = np.float32(value)
        return float(str(single)) if float(single) == value else float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false. Raises: CheckpointError."""
        if default is not None and key not in self.values:
            return default
        value: bool = self._of_type(key, bool, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string. Raises: CheckpointError."""
        if default is not None and key not in self.values:
            return default
        value: str = self._of_type(key, str, "a string")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of strings. Raises: CheckpointError."""
        value: list[str] = self._of_type(key, list, "an array of strings")
        return value
