"""4-bit floats (E2M1) of compressed-tensors files, one row of FLOAT_FORMATS for each format.

In: a directory's arrays: weight_packed u8 (out_features, in_features / 2), two codes a byte, the
low bits first; weight_scale u8, an exponent for each row and 32 inputs. Out: an entry.
Refuses settings that are not the format's own, and arrays that do not follow from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from crumb.architectures.configuration import refuse
from crumb.checkpoints.grouped_codes import needed
from crumb.checkpoints.mxfp4.blocks import GROUP, GROUP_BYTES, MxFloats
from crumb.checkpoints.tensor_map import Entry, QuantizedDirectory

MXFP4 = "mxfp4-pack-quantized"


@dataclass(frozen=True)
class FloatFormat:
    """What one format's settings must say, and how a module of it is read."""

    group_size: int
    strategy: str
    entry: Callable[[QuantizedDirectory, str], Entry]  # of a module; raises CheckpointError


def check_weights(weights: Mapping[str, Any], key: str, format: str) -> None:
    """Raises: CheckpointError for settings that are not the format's own."""
    row = FLOAT_FORMATS[format]
    own = {"num_bits": 4, "type": "float", "group_size": row.group_size, "strategy": row.strategy}
    for name, value in (own | {"symmetric": True}).items():
        setting = value if weights.get(name) is None else weights[name]
        if type(setting) is not type(value) or setting != value:
            raise refuse(f"{key}.{name}", f"{value} of {format}", setting)


def _mx_entry(directory: QuantizedDirectory, module: str) -> Entry:
    scales = needed(directory.arrays, f"{module}.weight_scale", (None, None), ("uint8",))
    bytes_of = scales.shape[0], GROUP_BYTES * scales.shape[1]
    packed = needed(directory.arrays, f"{module}.weight_packed", bytes_of, ("uint8",))
    return MxFloats(f"{directory.path}: {module}", packed, scales).entry()


FLOAT_FORMATS: dict[str, FloatFormat] = {MXFP4: FloatFormat(GROUP, "group", _mx_entry)}
