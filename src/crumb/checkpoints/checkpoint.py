"""An opened model, whatever file it lies in: what every container reader gives back.

In: what a reader found. Out: a Checkpoint: configuration, Plan, TensorMap, the files beside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crumb.architectures.plan import Plan
from crumb.checkpoints.tensor_map import TensorMap
from crumb.files.model_files import CONFIGURATION, ModelFiles


@dataclass(frozen=True)
class Checkpoint:
    """An opened model; tensors are still on disk."""

    path: Path
    configuration: Mapping[str, Any]
    plan: Plan
    tensors: TensorMap
    weight_files: tuple[Path, ...]
    files: ModelFiles

    def sha256(self) -> str:
        """One hash over configuration and weight files, in name order."""
        total = hashlib.sha256()
        configuration = self.path / CONFIGURATION
        beside = (configuration,) if configuration.is_file() else ()
        for path in (*beside, *sorted(self.weight_files)):
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    def weight_bytes(self) -> int:
        """Size of the weight files on disk."""
        return sum(path.stat().st_size for path in self.weight_files)
