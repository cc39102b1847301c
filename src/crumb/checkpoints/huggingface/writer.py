"""Write a model as a Hugging Face directory of floats that any library reads.

In: a checkpoint and a float type. Out: a directory; quantized matrices are decoded and rounded to
the type, floats stay as they are. Each tensor is reported.
Refuses weights that the type does not hold, and outputs that exist.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.directory_writer import new_directory, write_model
from crumb.checkpoints.export_report import Told
from crumb.checkpoints.float_parts import decoded_part, plain_part
from crumb.checkpoints.tensor_map import Quantized


def write_floats(checkpoint: Checkpoint, out: Path, dtype: np.dtype[Any], told: Told) -> None:
    """Write the directory. Raises: CheckpointError, OutputConflict, DoesNotFit, SolveError."""
    parts = []
    decoded = False
    for spec in checkpoint.plan.tensors():
        entry = checkpoint.tensors.entry(spec.name)
        if isinstance(entry, Quantized):
            decoded = True
            parts.append(decoded_part(spec.name, entry, dtype, "floats asked for", told))
        else:
            parts.append(plain_part(spec.name, entry, told))
    left_out = ("quantization_config", *(("torch_dtype",) if decoded else ()))
    configuration = {
        key: value for key, value in checkpoint.configuration.items() if key not in left_out
    }
    if decoded:  # else loaders would round floats that were not changed
        configuration["dtype"] = dtype.name
    with new_directory(out) as target:
        write_model(target, parts, configuration, checkpoint.files, "pt")
