"""Executors of a Plan, sessions, sampling, the tokenizer, and tokens as text."""
