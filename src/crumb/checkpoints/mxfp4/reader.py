"""MXFP4 of gpt-oss: quant_method "mxfp4" in config.json.

In: a directory's arrays. Out: entries; experts' matrices lie behind each other, their codes as they
are: <name>_blocks u8 (experts, out_features, groups, 16) and <name>_scales u8 (experts,
out_features, groups), whose bytes blocks.py reads.
Refuses shapes that do not agree, and powers that fp16 scales do not hold.
"""

from __future__ import annotations

from dataclasses import replace

from crumb.checkpoints.mxfp4.blocks import GROUP_BYTES, MxFloats
from crumb.checkpoints.tensor_map import Entry, QuantizedDirectory
from crumb.errors import CheckpointError

METHOD = "mxfp4"
BLOCKS, SCALES = "_blocks", "_scales"


def read_mxfp4(directory: QuantizedDirectory) -> dict[str, Entry]:
    """Entries of a directory. Raises: CheckpointError."""
    arrays = directory.arrays
    entries: dict[str, Entry] = {}
    for name, array in arrays.items():
        module = name.removesuffix(BLOCKS)
        if name.endswith(SCALES) and name.removesuffix(SCALES) + BLOCKS in arrays:
            continue
        if not name.endswith(BLOCKS):
            entries[name] = array
            continue
        scales = arrays.get(module + SCALES)
        if (
            scales is None
            or len(array.shape) != 4
            or array.shape != (*scales.shape, GROUP_BYTES)
            or {array.dtype.name, scales.dtype.name} != {"uint8"}
        ):
            raise CheckpointError(
                "blocks of 4-bit floats without a scale for each",
                where=f"{directory.path}: {name}",
                expected=f"{module}{SCALES} of bytes, and {GROUP_BYTES} bytes for each scale",
                found=f"{list(array.shape)} and {None if scales is None else list(scales.shape)}",
            )
        experts, outputs, groups = scales.shape
        rows = experts * outputs
        floats = MxFloats(
            f"{array.path}: {module}",
            replace(array, shape=(rows, groups * GROUP_BYTES)),
            replace(scales, shape=(rows, groups)),
        )
        entries[module] = floats.codes_entry()
    return entries
