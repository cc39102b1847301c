"""What is asked of a text that is only read: its score, or its vector.

In: a text or tokens. Out: one record for each. Refuses what is neither, and counts that are none.
"""

from __future__ import annotations

from dataclasses import dataclass

from crumb.errors import UsageError
from crumb.requests.generate_request import Prompt, plain_prompt
from crumb.requests.number import as_integer


@dataclass(frozen=True)
class ScoreRequest:
    """The log-probability of every token of a text."""

    prompt: Prompt  # kept as a text or a tuple
    top: int = 0  # most likely tokens told with each
    first: int = 1  # the token that is scored first; those before it may come from the cache

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", plain_prompt(self.prompt))
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


@dataclass(frozen=True)
class EmbedRequest:
    """A text as one vector."""

    prompt: Prompt  # kept as a text or a tuple

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", plain_prompt(self.prompt))
