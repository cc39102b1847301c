"""Crumb: run the largest language model your memory can hold, and prove what it cost."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from crumb.evaluation.comparison import evaluate
    from crumb.exporting import ExportResult
    from crumb.pipeline import QuantizeResult
    from crumb.run.language_model import LanguageModel, load

__version__ = "0.2.0"

__all__ = ["LanguageModel", "evaluate", "export", "load", "quantize"]

_HOMES = {
    "LanguageModel": "crumb.run.language_model",
    "evaluate": "crumb.evaluation.comparison",
    "load": "crumb.run.language_model",
}
"""Where each public name lives; `import crumb` itself loads none of them."""


def quantize(
    model: str | Path, *, bits: int | None = None, out: str | Path, **settings: Any
) -> QuantizeResult:
    """Quantize a checkpoint into a new directory; a target, such as gguf:q3_k, implies the bits.

    Settings are the fields of crumb.pipeline.QuantizeRequest, such as group_size, zero, target;
    `calibration` may be a text's name. Raises: what crumb.pipeline.quantize raises, UsageError.
    """
    from pathlib import Path

    from crumb.pipeline import Calibration, QuantizeRequest
    from crumb.pipeline import quantize as run

    _check_known(settings, QuantizeRequest, "a quantization")
    if isinstance(settings.get("calibration"), str):
        settings["calibration"] = Calibration(settings["calibration"])
    return run(QuantizeRequest(str(model), Path(out), bits, **settings))


def export(model: str | Path, out: str | Path, to: str, **settings: Any) -> ExportResult:
    """Write a model in another container: gguf, gptq, compressed-tensors, safetensors or crumb.

    Settings are the fields of crumb.exporting.ExportRequest, such as gguf_type, float_type, strict.
    Raises: what crumb.exporting.export raises, UsageError.
    """
    from pathlib import Path

    from crumb.exporting import Container, ExportRequest
    from crumb.exporting import export as run

    _check_known(settings, ExportRequest, "an export")
    return run(ExportRequest(str(model), Path(out), Container(to), **settings))


def _check_known(settings: dict[str, Any], request: type[Any], of: str) -> None:
    """Raises: UsageError for a setting that the request does not have."""
    from crumb.errors import UsageError

    unknown = sorted(settings.keys() - request.__dataclass_fields__.keys())
    if unknown:
        raise UsageError(f"no such setting of {of}", found=unknown[0])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'crumb' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
