"""Small models that a newcomer can try, for a command that was given none.

In: a verb. Out: one line that names them with what is downloaded. None is fetched here.
"""

from __future__ import annotations

from typing import NamedTuple


class SmallModel(NamedTuple):
    """A model that two cores and little memory run."""

    name: str
    size: str  # of its download
    chats: bool  # has a chat template


SMALL_MODELS = (
    SmallModel("novella-7m", "comes with crumb", False),
    SmallModel("HuggingFaceTB/SmolLM2-135M-Instruct", "0.27 GB", True),
    SmallModel("Qwen/Qwen2.5-0.5B-Instruct", "0.99 GB", True),
    SmallModel("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "2.2 GB", True),
)


def suggestion(verb: str) -> str:
    """What to try where MODEL is missing."""
    models = [model for model in SMALL_MODELS if model.chats or verb != "chat"]
    named = ", ".join(f"{model.name} ({model.size})" for model in models)
    return f"MODEL is missing. Try `crumb {verb} {models[0].name}`; small ones: {named}."
