"""FunctionGemma: Gemma's way of writing calls with marks of its own; gemma.py has both."""

from __future__ import annotations

from crumb.structure.tool_formats.gemma import Marks, make_format

FORMAT = make_format(
    "function-gemma", Marks("<start_function_call>", "<end_function_call>", "<escape>")
)
