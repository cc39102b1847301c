"""How a Hugging Face directory is quantized, as its config.json says, and who reads it.

In: a configuration, before any weight file is opened. Out: the configuration with its settings
under quantization_config, and the reader of READERS; the reader of floats where there are none.
Refuses methods without a reader, by name and saying what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from crumb.checkpoints.awq import reader as awq
from crumb.checkpoints.compressed_tensors import reader as compressed_tensors
from crumb.checkpoints.crumb import reader as crumb_directory
from crumb.checkpoints.fp8 import reader as fp8
from crumb.checkpoints.gptq import reader as gptq
from crumb.checkpoints.grouped_codes import SETTINGS
from crumb.checkpoints.mlx import reader as mlx
from crumb.checkpoints.mxfp4 import reader as mxfp4
from crumb.checkpoints.tensor_map import Entry, QuantizedDirectory
from crumb.errors import CheckpointError
from crumb.files.model_files import CONFIGURATION, read_json

EntryReader = Callable[[QuantizedDirectory], dict[str, Entry]]

READERS: dict[str, EntryReader] = {
    crumb_directory.METHOD: crumb_directory.group_packed,
    gptq.METHOD: gptq.read_gptq,
    awq.METHOD: awq.read_awq,
    compressed_tensors.METHOD: compressed_tensors.read_compressed_tensors,
    mlx.METHOD: mlx.read_mlx,
    mxfp4.METHOD: mxfp4.read_mxfp4,
    **dict.fromkeys(fp8.METHODS, fp8.read_fp8),
}
"""quant_method of a directory -> who reads its matrices."""

OLDER_KEY = "compression_config"
"""Where compressed-tensors put its settings before they were quantization_config."""

LEGACY_FILES = {gptq.LEGACY_FILE: gptq.METHOD, awq.LEGACY_FILE: awq.METHOD}
"""Where earlier tools wrote the settings, without their quant_method."""


def with_settings(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with its quantization settings, if any, under their one key."""
    changed = dict(configuration)
    older, of_mlx = changed.pop(OLDER_KEY, None), changed.pop(mlx.KEY, None)
    settings = changed.get(SETTINGS)
    if settings is None and isinstance(older, dict):
        changed[SETTINGS] = {"quant_method": compressed_tensors.METHOD} | older
    elif of_mlx is not None and (not isinstance(settings, dict) or "quant_method" not in settings):
        changed[SETTINGS] = {"quant_method": mlx.METHOD, mlx.KEY: of_mlx}
    return changed


def reader_of(configuration: Mapping[str, Any], where: object) -> EntryReader:
    """Who reads the matrices of a directory. Raises: CheckpointError for a method without one."""
    settings = configuration.get(SETTINGS)
    if settings is None:
        return _read_floats
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    reader = READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise CheckpointError(
            "this quantization method cannot be read by this version",
            where=where,
            expected=f"quant_method {' or '.join(READERS)}",
            found=repr(method)[:80],
            do="Take the model's 16-bit release and quantize it with `crumb quantize`",
        )
    return reader


def _read_floats(directory: QuantizedDirectory) -> dict[str, Entry]:
    """Entries of a directory without settings in config.json: its arrays, or those of a legacy."""
    if not any(name.endswith(".qweight") for name in directory.arrays):
        return dict(directory.arrays)
    for name, method in LEGACY_FILES.items():
        if (directory.path / name).is_file():
            settings = {"quant_method": method} | read_json(directory.path / name)
            configuration = dict(directory.configuration) | {SETTINGS: settings}
            reader = reader_of(configuration, directory.path / name)
            return reader(
                QuantizedDirectory(
                    directory.path, configuration, directory.arrays, directory.metadata
                )
            )
    raise CheckpointError(
        "quantized arrays without settings",
        where=directory.path,
        expected=f"{SETTINGS} in {CONFIGURATION}, or {' or '.join(LEGACY_FILES)}",
    )
