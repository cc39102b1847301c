"""The models of a server: which are loaded, who uses them, and which has to go for another.

In: names, from requests. Out: leases: a model stays loaded from the moment a request for it is
accepted to its last byte. One model is loaded at a time, within the budget of bytes, by the
engine's own dry run; the longest unused one goes first, never a leased one.
Refuses names it does not have, and with ModelBusy to wait for memory for longer than it was told.
All of it lives in one event loop, so that a state is read and changed without a gap.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

from crumb.errors import DoesNotFit, ModelBusy, ModelNotFound
from crumb.server.served_model import ModelState, ServedModel

LOOK_SECONDS = 1.0
"""Between two looks at what has been unused for too long."""

TURN_SECONDS = 10.0
"""How long requests for a model that is to go may come in before another that waits."""

LATEST = ":latest"
"""What Ollama's clients add to a name without a tag."""


class ModelPool:
    """All models, by their names."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        *,
        budget_bytes: int,
        aliases: Mapping[str, str] | None = None,
        idle_seconds: float | None = None,
        wait_seconds: float = 60.0,
        tell: Callable[[str, ServedModel], None] = lambda event, model: None,
    ) -> None:
        """`tell`: told of each model that was loaded, unloaded, or failed to load."""
        self._models = {model.name: model for model in models}
        self._aliases = dict(aliases or {})
        self._budget_bytes, self._idle_seconds = budget_bytes, idle_seconds
        self._wait_seconds, self._tell = wait_seconds, tell
        self._changed = asyncio.Condition()
        self._loading: dict[ServedModel, asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Lock()

    @property
    def models(self) -> tuple[ServedModel, ...]:
        return tuple(self._models.values())

    @property
    def default(self) -> ServedModel:
        """The model of requests that name none."""
        return next(iter(self._models.values()))

    def find(self, name: str | None) -> ServedModel:
        """A model by its name, an alias, or its name as Ollama's clients write it.

        Raises: ModelNotFound.
        """
        if not name:
            return self.default
        for spelling in (name, name.removesuffix(LATEST)):
            model = self._models.get(self._aliases.get(spelling, spelling))
            if model is not None:
                return model
        raise ModelNotFound(
            f"model {name[:100]!r} not found",
            expected=", ".join(self._models)[:200],
            do="GET /v1/models lists what is served here",
        )

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[ServedModel]:
        """A model, loaded, for as long as the `with` lasts.

        Raises: ModelNotFound, ModelBusy, DoesNotFit, and why it cannot be loaded.
        """
        model = self.find(name)
        model.leases += 1
        try:
            await self._ensure(model)
            yield model
        finally:
            model.leases -= 1
            model.last_used = time.monotonic()
            await asyncio.shield(self._notify())

    async def load(self, name: str | None) -> ServedModel:
        """Load a model that nobody asks yet. Raises: as lease."""
        async with self.lease(name) as model:
            return model

    async def unload(self, name: str | None) -> ServedModel:
        """Let a model's memory go. Raises: ModelNotFound, ModelBusy while it is used."""
        model = self.find(name)
        if model.leases or model in self._loading:
            raise ModelBusy("this model is in use", where=model.name, do="Ask again later")
        if model.state is ModelState.LOADED:
            await self._unload(model)
        return model

    async def watch(self) -> None:
        """Unload what is unused for too long, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            for model in self.models:
                keep = self._idle_seconds if model.keep_seconds is None else model.keep_seconds
                idle = keep is not None and now - model.last_used > keep
                if idle and not model.leases and model.state is ModelState.LOADED:
                    await self._unload(model)

    async def close(self) -> None:
        """Unload everything; requests that still run end as cancelled."""
        for task in self._loading.values():
            task.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        for model in self.models:
            if model.model is not None:
                await self._unload(model)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _ensure(self, model: ServedModel) -> None:
        """Return once the model is loaded. Who leaves meanwhile leaves no trace."""
        await self._give_way(model)
        if model.state is ModelState.LOADED:
            return
        task = self._loading.get(model)
        if task is None:
            task = asyncio.create_task(self._load(model))
            self._loading[model] = task
            task.add_done_callback(lambda done: self._end_loading(model, done))
        await asyncio.shield(task)

    def _end_loading(self, model: ServedModel, done: asyncio.Task[None]) -> None:
        self._loading.pop(model, None)
        if not done.cancelled():
            done.exception()  # seen, also where all who waited have left

    async def _give_way(self, model: ServedModel) -> None:
        """Wait while another model has waited for this one's memory for its turn."""
        async with self._changed:
            while model.state is ModelState.LOADED and self._others_turn(model):
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._changed.wait()

    def _others_turn(self, model: ServedModel) -> bool:
        now = time.monotonic()
        return any(
            other is not model
            and other.waiting_since is not None
            and now - other.waiting_since > TURN_SECONDS
            for other in self.models
        )

    async def _load(self, model: ServedModel) -> None:
        """Make room, then load. Raises: as lease."""
        async with self._one_at_a_time:
            if not model.leases or model.state is ModelState.LOADED:
                return  # nobody waits any more, or it came while we waited
            try:
                await self._until_unloaded(model)
                await self._make_room(model)
                model.state = ModelState.LOADING
                model.model = await asyncio.to_thread(model.load)
                model.state, model.error = ModelState.LOADED, None
                model.last_used = time.monotonic()
                self._tell("loaded", model)
            except Exception as error:
                model.state = ModelState.UNLOADED
                if not isinstance(error, ModelBusy):
                    model.error = error
                    self._tell("failed", model)
                raise
            finally:
                model.waiting_since = None
                await self._notify()

    async def _until_unloaded(self, model: ServedModel) -> None:
        async with self._changed:
            while model.state is ModelState.UNLOADING:
                await self._changed.wait()

    async def _make_room(self, model: ServedModel) -> None:
        """Unload what nobody uses until the model fits. Raises: ModelBusy, DoesNotFit."""
        needed = model.plan.total_bytes
        if needed > self._budget_bytes:
            raise DoesNotFit(
                "this model does not fit the memory of the server",
                where=model.name,
                expected=f"{needed / 1e9:.2f} GB",
                found=f"a budget of {self._budget_bytes / 1e9:.2f} GB",
                do="Start the server with a smaller --context or --cache-memory, or fewer bits",
            )
        begin = time.monotonic()
        while self._used_bytes() + needed > self._budget_bytes:
            idle = [m for m in self.models if m.state is ModelState.LOADED and not m.leases]
            if idle:
                await self._unload(min(idle, key=lambda each: each.last_used))
                continue
            model.waiting_since = model.waiting_since or begin
            left = begin + self._wait_seconds - time.monotonic()
            if left <= 0 or not model.leases:
                busy = [m.name for m in self.models if m.state is ModelState.LOADED]
                raise ModelBusy(
                    f"there is no memory for {model.name} beside {', '.join(busy)[:200]}, in use",
                    expected=f"{needed / 1e9:.2f} GB",
                    found=f"{(self._budget_bytes - self._used_bytes()) / 1e9:.2f} GB",
                    do="Ask again later",
                )
            async with self._changed:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, LOOK_SECONDS)):
                        await self._changed.wait()

    def _used_bytes(self) -> int:
        held = (each for each in self.models if each.state is not ModelState.UNLOADED)
        return sum(each.plan.total_bytes for each in held)

    async def _unload(self, model: ServedModel) -> None:
        loaded, model.model = model.model, None
        model.state = ModelState.UNLOADING
        assert loaded is not None, "it was loaded"
        try:
            await asyncio.to_thread(loaded.close)
        finally:
            model.state = ModelState.UNLOADED
            self._tell("unloaded", model)
            await self._notify()
