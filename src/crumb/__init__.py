"""Crumb: run the largest language model your memory can hold, and prove what it cost."""
