"""Pre-tokenizers as the tokenizer.json files of published models spell them.

In: nothing. Out: PUBLISHED: by model, the spelling, what else of the file matters, and GGUF's name.
"""

from __future__ import annotations

from typing import Any

Spelling = tuple[list[dict[str, Any]], bool, bool, str]
"""Steps, whether whole words are taken, whether texts become NFC first, tokenizer.ggml.pre."""


def split(expression: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    """A step that cuts by an expression."""
    return {
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": behavior,
        "invert": invert,
    }


def to_bytes(words: bool) -> dict[str, Any]:
    """The step that writes bytes as letters, and may cut words first."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": words,
    }


def digits(alone: bool) -> dict[str, Any]:
    return {"type": "Digits", "individual_digits": alone}


O200K = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"

PUBLISHED: dict[str, Spelling] = {
    "gpt2": ([to_bytes(words=True)], False, False, "gpt-2"),
    "bloom": ([split(BLOOM), to_bytes(words=False)], False, False, "bloom"),
    "falcon": (
        [
            {"type": "Punctuation", "behavior": "Contiguous"},
            to_bytes(words=True),
            digits(alone=False),
            split("[0-9][0-9][0-9]"),
        ],
        False,
        False,
        "falcon",
    ),
    "gpt-oss": ([split(O200K), to_bytes(words=False)], False, False, "gpt-4o"),
    "llama-3": ([split(CL100K), to_bytes(words=False)], True, False, "llama-bpe"),
    "olmo2": ([split(CL100K), to_bytes(words=False)], False, False, "dbrx"),
    "phi-4": ([split(CL100K, "Removed", invert=True), to_bytes(words=False)], False, False, "dbrx"),
    "qwen3": (
        [split(CL100K.replace("{1,3}", "")), to_bytes(words=False)],
        False,
        True,
        "qwen2",
    ),
    "starcoder2": ([digits(alone=True), to_bytes(words=True)], False, False, "smollm"),
    "command-r": ([digits(alone=True), to_bytes(words=True)], False, True, "command-r"),
}
