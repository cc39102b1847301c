"""One model as a server knows it: its name, what it would take, and the model while it is loaded.

In: a name, a path, how its engine is built. Out: facts without loading it, and the loaded model
with its prompts and requests. Refuses nothing itself; the pool says when it is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import CrumbError
from crumb.run.language_model import LanguageModel
from crumb.run.memory_plan import EngineSettings, MemoryPlan
from crumb.run.program import plan_engine
from crumb.run.source_texts import chat_template_of
from crumb.structure.chat_format import ChatFormat

SettingsOf = Callable[[Checkpoint], EngineSettings]


class ModelState(StrEnum):
    """Where a model is."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"


@dataclass(eq=False)
class ServedModel:
    """A model of a server."""

    name: str
    checkpoint: Checkpoint
    settings: EngineSettings
    most_waiting: int
    plain_template: bool = False  # a chat is its messages, one below the other
    state: ModelState = ModelState.UNLOADED
    model: LanguageModel | None = None
    leases: int = 0  # requests that were accepted for it and have not ended
    last_used: float = field(default_factory=time.monotonic)
    error: Exception | None = None  # why the last loading failed
    keep_seconds: float | None = None  # how long it stays unused; None: as the server says
    created: int = field(default_factory=lambda: int(time.time()))
    waiting_since: float | None = None  # a request for it waits for memory since then

    @classmethod
    def open(
        cls,
        name: str,
        path: Path,
        settings_of: SettingsOf,
        most_waiting: int,
        plain_template: bool = False,
    ) -> ServedModel:
        """Read what a model's files say. Raises: ModelNotFound, CheckpointError, UsageError."""
        checkpoint = open_checkpoint(path)
        return cls(name, checkpoint, settings_of(checkpoint), most_waiting, plain_template)

    @cached_property
    def plan(self) -> MemoryPlan:
        """The memory it takes once loaded: the engine's own dry run."""
        return plan_engine(self.checkpoint, self.settings)

    @cached_property
    def size_bytes(self) -> int:
        return self.checkpoint.weight_bytes()

    @property
    def context_tokens(self) -> int:
        return self.settings.context(self.checkpoint.plan)

    @cached_property
    def parameters(self) -> int:
        """Weights of all tensors, tied ones once."""
        return self.checkpoint.plan.parameters()

    @property
    def bits_per_weight(self) -> float:
        """Of the files, everything counted."""
        return 8 * self.size_bytes / max(self.parameters, 1)

    @property
    def family(self) -> str:
        return str(self.checkpoint.configuration.get("model_type", "unknown"))

    @cached_property
    def chat_format(self) -> ChatFormat | None:
        """How its chat template has tools and thoughts; None where there is no template."""
        try:
            return ChatFormat(chat_template_of(self.checkpoint).source(True))
        except CrumbError:
            return None

    @property
    def capabilities(self) -> list[str]:
        """What Ollama's clients want to know."""
        form = self.chat_format
        more = [] if form is None else ["tools"]
        thinks = form is not None and form.reasoning is not None
        return ["completion", "embedding", *more, *(["thinking"] if thinks else [])]

    @cached_property
    def answers_chats(self) -> bool:
        """Whether there is a chat template."""
        return self.plain_template or self.chat_format is not None

    @cached_property
    def writes_system_in_place(self) -> bool:
        """Whether the chat template writes a system message in the middle where it stands."""
        if self.plain_template or not self.answers_chats:
            return True
        first, probe, last = "first words", "seven swans", "last words"
        messages = [
            {"role": "user", "content": first},
            {"role": "assistant", "content": "an answer"},
            {"role": "system", "content": probe},
            {"role": "user", "content": last},
        ]
        try:
            text = chat_template_of(self.checkpoint).render(messages)
        except CrumbError:
            return False
        return -1 < text.find(first) < text.find(probe) < text.find(last)

    @property
    def loaded(self) -> LanguageModel:
        """The model; only under a lease."""
        assert self.model is not None, "leased models are loaded"
        return self.model

    def load(self) -> LanguageModel:
        """Build the engine, tokenizer and template; in a thread of its own."""
        model = LanguageModel(self.checkpoint, self.settings, self.most_waiting)
        try:
            _ = model.tokenizer.kinds
        except BaseException:
            model.close()
            raise
        return model

    def facts(self) -> Mapping[str, Any]:
        """What a list of models says of it."""
        return {
            "state": self.state.value,
            "size_bytes": self.size_bytes,
            "bits_per_weight": round(self.bits_per_weight, 3),
            "parameters": self.parameters,
            "context_tokens": self.context_tokens,
            "memory_bytes": self.plan.total_bytes,
            "family": self.family,
            "requests": self.leases,
            "error": None if self.error is None else str(self.error),
        }
