"""Executors of a Plan, sessions, sampling and the tokenizer."""
