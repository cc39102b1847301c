"""Crumb: run the largest language model your memory can hold, and prove what it cost."""

__version__ = "0.1.0"
