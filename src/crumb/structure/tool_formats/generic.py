"""Models whose template knows no tools (Gemma 2 and 3, Phi 4): asked for Hermes' format in words.

The first message of the user begins with what the tools are and how to call them.
"""

from __future__ import annotations

from dataclasses import replace

from crumb.structure.tool_formats import hermes

FORMAT = replace(
    hermes.FORMAT, name="generic", order=1000, recognises=lambda template: True, in_words=True
)
