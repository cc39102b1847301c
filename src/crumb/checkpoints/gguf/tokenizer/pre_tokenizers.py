"""The pre-tokenizers that GGUF files name by tokenizer.ggml.pre, and the ways they are written.

In: a name, or the pre_tokenizer of a tokenizer.json. Out: the pre_tokenizer, or the name.
A pre-tokenizer is a row of regular expressions, applied one after the other: what one matches,
and what lies between, is cut again by the next; then bytes become letters.
Refuses names and pre-tokenizers that no row has. Source: tokenizer.json files of these models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crumb.architectures.configuration import shown
from crumb.errors import CheckpointError, UsageError

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
SPACES = r"\s+(?!\S)|\s+"
LINES = rf"\s*[\r\n]+|{SPACES}"

GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{SPACES}"
LLAMA3 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{MARKS}|{LINES}"
QWEN2 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{MARKS}|{LINES}"
MINICPM5 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}+|{MARKS}|{LINES}"
QWEN35 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{LINES}"
)
SEED = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{LINES}"
BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
    rf"| ?[^\s\p{{L}}\p{{N}}]++[\r\n]*|\s*[\r\n]|{SPACES}"
)

UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
FRONT = r"[^\r\n\p{L}\p{N}]?"
PATHS = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{LINES}"
TEKKEN = rf"{FRONT}{UPPER}*{LOWER}+|{FRONT}{UPPER}+{LOWER}*|\p{{N}}|{PATHS}"
GPT4O = (
    rf"{FRONT}{UPPER}*{LOWER}+{CONTRACTIONS}?|{FRONT}{UPPER}+{LOWER}*{CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{PATHS}"
)

CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-"
    "\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-"
    "\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15"
    "\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d"
    "\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183"
    "\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-"
    "\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
"""What DeepSeek's first tokenizer takes for letters of Latin, Greek, Cyrillic and the like."""

CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
DEEPSEEK_WORDS = rf"\s?[{CASED_LETTERS}]+"
DEEPSEEK_MARKS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{LINES}"
)
BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

DIGIT, DIGITS, THREE_DIGITS, THREE_OF_TEN = r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", "[0-9][0-9][0-9]"
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"
FALCON_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"


@dataclass(frozen=True)
class PreTokenizer:
    """What a name stands for, beside the expressions what readers take from it."""

    splits: tuple[str, ...]
    whole_words: bool = False  # a word that is a token is taken whole, whatever its merges
    add_begin: bool = False  # where the file does not say
    normal_form: bool = False  # texts are brought into Unicode's NFC first


ROWS: Mapping[str, PreTokenizer] = {
    "gpt-2": PreTokenizer((GPT2,)),
    "default": PreTokenizer((PUNCTUATION, GPT2, DIGITS, THREE_OF_TEN)),
    "llama-bpe": PreTokenizer((LLAMA3,), whole_words=True, add_begin=True),
    "dbrx": PreTokenizer((LLAMA3,)),
    "qwen2": PreTokenizer((QWEN2,), normal_form=True),
    "deepseek-r1-qwen": PreTokenizer((QWEN2,)),
    "qwen35": PreTokenizer((QWEN35,)),
    "smollm": PreTokenizer((DIGIT, GPT2)),
    "command-r": PreTokenizer((DIGIT, GPT2), normal_form=True),
    "tekken": PreTokenizer((TEKKEN,), whole_words=True, add_begin=True),
    "gpt-4o": PreTokenizer((GPT4O,)),
    "deepseek-llm": PreTokenizer((r"[\r\n]", DEEPSEEK_WORDS, DEEPSEEK_MARKS, r"\s+$", CJK, DIGIT)),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, DIGIT)),
    "deepseek-v3": PreTokenizer((THREE_DIGITS, HAN_AND_KANA, DEEPSEEK3)),
    "falcon": PreTokenizer((FALCON_PUNCTUATION, GPT2, THREE_OF_TEN)),
    "chatglm-bpe": PreTokenizer((LLAMA3,)),
    "glm4": PreTokenizer((LLAMA3,), whole_words=True),
    "minicpm5": PreTokenizer((THREE_DIGITS, MINICPM5), whole_words=True),
    "bloom": PreTokenizer((BLOOM,)),
    "viking": PreTokenizer((BLOOM, DIGIT)),
    "seed-coder": PreTokenizer((SEED,)),
    "bailingmoe": PreTokenizer((BAILING,)),
}
"""Of rows with the same expressions the first that fits names a pre-tokenizer to be written."""

ALSO_CALLED: Mapping[str, str] = {
    "gpt-2": "phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 mellum exaone4",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
    "dbrx": "smaug-bpe",
    "qwen2": "megrez kormo f2llmv2 hunyuan",
    "deepseek-r1-qwen": "stablelm2 grok-2 solar-open",
    "smollm": "starcoder refact codeshell exaone minerva-7b mellum2",
    "gpt-4o": "llama4 kanana2 minimax-m2",
    "glm4": "glm5",
    "bloom": "poro-chat gpt3-finnish",
    "bailingmoe": "bailingmoe2 llada-moe",
}
"""Other names of the same rows."""

NAMED = dict(ROWS) | {
    other: ROWS[name] for name, others in ALSO_CALLED.items() for other in others.split()
}

OTHER_STEPS = {(FALCON_PUNCTUATION, GPT2, DIGITS, THREE_OF_TEN): "falcon"}
"""Expressions that a row stands for without having them."""

OTHER_SPELLINGS: Mapping[str, str] = {
    "\r": r"\r",
    "\n": r"\n",
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])": CONTRACTIONS,
    r"\p{N}{1}": DIGIT,
    " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+": BLOOM,
}
"""Ways to write a part of an expression, and how the rows write it."""


def find_pre_tokenizer(name: str, where: object) -> PreTokenizer:
    """The row of a name. Raises: CheckpointError."""
    row = NAMED.get(name)
    if row is None:
        raise CheckpointError(
            "this pre-tokenizer is not known",
            where=where,
            expected=f"one of {', '.join(sorted(NAMED))}",
            found=shown(name),
        )
    return row


def pre_tokenizer_json(row: PreTokenizer) -> dict[str, Any]:
    """A row as tokenizer.json has it."""
    splits, own = row.splits, row.splits[-1] == GPT2
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
        for split in (splits[:-1] if own else splits)
    ]
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": own}
    return {"type": "Sequence", "pretokenizers": [*steps, last]} if steps else last


def name_of_pre_tokenizer(
    content: Any, *, whole_words: bool, normal_form: bool, where: Path
) -> str:
    """The name of a pre_tokenizer of a tokenizer.json. Raises: UsageError."""
    splits = _splits(content)
    rows = [name for name, row in ROWS.items() if splits is not None and row.splits == splits]
    rows += [name for steps, name in OTHER_STEPS.items() if steps == splits]
    if not rows:
        raise UsageError(
            "GGUF has no name for this model's pre-tokenizer",
            where=where,
            expected=f"that of one of {', '.join(ROWS)}",
            found=shown(content),
            do="Export to another container, which keeps tokenizer.json as it is",
        )
    columns = (whole_words, normal_form)
    # False sorts first: a row that differs in neither, then one that differs in the second.
    return min(
        rows, key=lambda n: (ROWS[n].whole_words != columns[0], ROWS[n].normal_form != columns[1])
    )


def is_over_bytes(content: Any) -> bool:
    """Whether a pre_tokenizer of a tokenizer.json writes bytes as letters."""
    return any(step.get("type") == "ByteLevel" for step in _steps(content))


def _steps(content: Any) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = content.get("pretokenizers", [content]) if content else []
    return steps


def _splits(content: Any) -> tuple[str, ...] | None:
    """The expressions of a pre_tokenizer, None where it does something else."""
    splits: list[str] = []
    for step in _steps(content):
        read = READ_STEPS.get(step["type"])
        expressions = None if read is None else read(step)
        if expressions is None:
            return None
        splits += expressions
    return tuple(splits)


def _of_split(step: Mapping[str, Any]) -> list[str] | None:
    """An expression; cutting out what lies between matches is the same where all is matched."""
    text = step["pattern"].get("Regex")
    if text is None or (step["behavior"], step["invert"]) not in SPLITTING:
        return None
    for other, own in OTHER_SPELLINGS.items():
        text = text.replace(other, own)
    return [text] if text.endswith(SPACES) or step["behavior"] == "Isolated" else None


def _of_bytes(step: Mapping[str, Any]) -> list[str] | None:
    if step.get("add_prefix_space", True):
        return None
    return [GPT2] if step.get("use_regex", True) else []


def _of_digits(step: Mapping[str, Any]) -> list[str]:
    return [DIGIT if step.get("individual_digits", False) else DIGITS]


def _of_punctuation(step: Mapping[str, Any]) -> list[str] | None:
    return [FALCON_PUNCTUATION] if step.get("behavior") == "Contiguous" else None


SPLITTING = {("Isolated", False), ("Removed", True)}

READ_STEPS: Mapping[str, Callable[[Mapping[str, Any]], list[str] | None]] = {
    "Split": _of_split,
    "ByteLevel": _of_bytes,
    "Digits": _of_digits,
    "Punctuation": _of_punctuation,
}
"""Type of a step -> its expressions, None for settings that no row has."""
