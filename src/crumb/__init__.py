"""Crumb: run the largest language model your memory can hold, and prove what it cost."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from crumb.evaluate.comparison import evaluate
    from crumb.pipeline import QuantizeResult
    from crumb.run.language_model import LanguageModel, load

__version__ = "0.2.0"

__all__ = ["LanguageModel", "evaluate", "load", "quantize"]

_HOMES = {
    "LanguageModel": "crumb.run.language_model",
    "evaluate": "crumb.evaluate.comparison",
    "load": "crumb.run.language_model",
}
"""Where each public name lives; `import crumb` itself loads none of them."""


def quantize(model: str | Path, *, bits: int, out: str | Path, **settings: Any) -> QuantizeResult:
    """Quantize a checkpoint into a new directory.

    Settings are the fields of crumb.pipeline.QuantizeRequest, such as group_size, zero, restart;
    `calibration` may be a text's name. Raises: what crumb.pipeline.quantize raises, UsageError.
    """
    from pathlib import Path

    from crumb.errors import UsageError
    from crumb.pipeline import Calibration, QuantizeRequest
    from crumb.pipeline import quantize as run

    unknown = sorted(settings.keys() - QuantizeRequest.__dataclass_fields__.keys())
    if unknown:
        raise UsageError("no such setting of a quantization", found=unknown[0])
    if isinstance(settings.get("calibration"), str):
        settings["calibration"] = Calibration(settings["calibration"])
    return run(QuantizeRequest(str(model), Path(out), bits, **settings))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'crumb' has no attribute {name!r}")
    found = getattr(import_module(_HOMES[name]), name)
    return globals().get(name, found)  # importing a room puts the room itself here
