"""Crumb: run the largest language model your memory can hold, and prove what it cost."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crumb.evaluate.comparison import evaluate
    from crumb.pipeline import quantize
    from crumb.run.language_model import LanguageModel, load

__version__ = "0.2.0"

__all__ = ["LanguageModel", "evaluate", "load", "quantize"]

_HOMES = {
    "LanguageModel": "crumb.run.language_model",
    "evaluate": "crumb.evaluate.comparison",
    "load": "crumb.run.language_model",
    "quantize": "crumb.pipeline",
}
"""Where each public name lives; `import crumb` itself loads none of them."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'crumb' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
