"""What is asked of a text that is only read: its score, or its vector.

In: a text or tokens. Out: one record for each. Refuses what is neither, and counts that are none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crumb.errors import UsageError
from crumb.requests.generate_request import Prompt, plain_prompt, prompt_list
from crumb.requests.number import as_integer


@dataclass(frozen=True)
class ScoreRequest:
    """The log-probability of every token of a text, or of a target behind one."""

    prompt: Prompt  # kept as a text or a tuple
    target: Prompt | None = None  # that is scored alone: what a model with an encoder writes
    top: int = 0  # most likely tokens told with each
    first: int = 1  # the token that is scored first; those before it may come from the cache

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", plain_prompt(self.prompt))
        if self.target is not None:
            object.__setattr__(self, "target", plain_prompt(self.target))
        for name, least in (("top", 0), ("first", 1)):
            count = as_integer(getattr(self, name))
            if count is None or count < least:
                raise UsageError(
                    "not a number of tokens",
                    where=name,
                    expected=f"{least} or more",
                    found=repr(getattr(self, name))[:40],
                )
            object.__setattr__(self, name, count)


def score_requests(texts: Any, target: Any = None, top: int = 0) -> list[ScoreRequest]:
    """Of a text, or of each of a list: alone, or with its target. Raises: UsageError."""
    several = prompt_list(texts)
    prompts = [texts] if several is None else several
    targets = [target] * len(prompts) if several is None or target is None else prompt_list(target)
    if targets is None or len(targets) != len(prompts):
        raise UsageError(
            "each text has a target of its own",
            where="target",
            expected=f"a list of {len(prompts)}",
            found="one text" if targets is None else f"a list of {len(targets)}",
        )
    pairs = zip(prompts, targets, strict=True)
    return [ScoreRequest(prompt, target, top) for prompt, target in pairs]


@dataclass(frozen=True)
class EmbedRequest:
    """A text as one vector."""

    prompt: Prompt  # kept as a text or a tuple

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", plain_prompt(self.prompt))
