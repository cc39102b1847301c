"""Perplexity, divergence and gates. The room itself can be called: `crumb.evaluate(model, ...)`.

In: what comparison.evaluate takes. Out: its Evaluation. A room and a function of the front door
share the name, and whichever is imported first, the call must work.
"""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *given: Any, **settings: Any) -> Any:
        from crumb.evaluate.comparison import evaluate

        return evaluate(*given, **settings)


sys.modules[__name__].__class__ = _Room
