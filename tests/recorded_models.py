"""Models of any size as their headers: what a hub gives before any weight is downloaded.

In: a config.json, recorded in tests/recorded, or its keys. Out: the files of a repository, the
weights of which are the header of one safetensors file and a size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from hub_server import HeadOfFile

from crumb.architectures.registry import plan_of
from crumb.checkpoints.safetensors import ArrayToWrite, encode_header

RECORDED = Path(__file__).parent / "recorded"
BF16 = np.dtype(ml_dtypes.bfloat16)


def recorded_configuration(name: str) -> dict[str, Any]:
    """The config.json that a model of this name has on the hub."""
    configuration: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    return configuration


def repository_of(configuration: Mapping[str, Any]) -> dict[str, bytes | HeadOfFile]:
    """The files of a repository of floats; its weights are a header and a size."""
    arrays = {
        spec.name: ArrayToWrite(BF16, spec.shape, lambda: np.empty(0, BF16))
        for spec in plan_of(configuration).tensors()
    }
    header = encode_header(arrays, {"format": "pt"})
    size = len(header) + sum(array.size_bytes for array in arrays.values())
    return {
        "config.json": json.dumps(configuration).encode(),
        "model.safetensors": HeadOfFile(header, size),
    }
