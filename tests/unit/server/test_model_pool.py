"""Several models in one budget of memory: who is loaded, who waits, who goes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from crumb.errors import CheckpointError, DoesNotFit, ModelBusy, ModelNotFound
from crumb.server import model_pool
from crumb.server.model_pool import ModelPool
from crumb.server.served_model import ModelState, ServedModel


class Built:
    """Stands for a loaded model."""

    def close(self) -> None:
        """Nothing is held."""


def model(name: str, size: int = 4, load: Callable[[], Any] = Built) -> ServedModel:
    served = ServedModel(name, None, None, 1)  # type: ignore[arg-type]
    served.__dict__["plan"] = SimpleNamespace(total_bytes=size)
    served.__dict__["load"] = load
    return served


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(20):
            return await work()

    return asyncio.run(bounded())


def test_a_model_is_loaded_when_it_is_asked_for_and_stays() -> None:
    async def work() -> None:
        pool = ModelPool([model("a"), model("b")], budget_bytes=8)
        async with pool.lease("b") as served:
            assert served.state is ModelState.LOADED
        assert [each.state for each in pool.models] == [ModelState.UNLOADED, ModelState.LOADED]
        await pool.close()
        assert all(each.model is None for each in pool.models)

    run(work)


def test_requests_for_a_model_that_is_loading_join_its_loading() -> None:
    loads: list[int] = []

    def slow() -> Built:
        loads.append(1)
        time.sleep(0.05)
        return Built()

    async def work() -> None:
        pool = ModelPool([model("a", load=slow)], budget_bytes=8)

        async def ask() -> None:
            async with pool.lease("a"):
                pass

        await asyncio.gather(*(ask() for _ in range(9)))
        assert loads == [1]

    run(work)


def test_the_longest_unused_model_goes_for_another() -> None:
    async def work() -> None:
        pool = ModelPool([model("a"), model("b"), model("c")], budget_bytes=8)
        for name in ("a", "b", "a", "c"):
            async with pool.lease(name):
                await asyncio.sleep(0.002)
        loaded = [each.name for each in pool.models if each.state is ModelState.LOADED]
        assert loaded == ["a", "c"]

    run(work)


def test_a_model_in_use_never_goes_and_who_waits_is_told_why() -> None:
    async def work() -> None:
        pool = ModelPool([model("a"), model("b")], budget_bytes=7, wait_seconds=0.05)
        async with pool.lease("a") as used:
            with pytest.raises(ModelBusy, match="no memory for b beside a"):
                async with pool.lease("b"):
                    pass
            assert used.state is ModelState.LOADED
        async with pool.lease("b") as served:
            assert served.state is ModelState.LOADED

    run(work)


def test_a_request_waits_until_another_model_is_free() -> None:
    async def work() -> None:
        pool = ModelPool([model("a"), model("b")], budget_bytes=7, wait_seconds=10)
        order: list[str] = []

        async def hold() -> None:
            async with pool.lease("a"):
                await asyncio.sleep(0.1)
                order.append("a ends")

        async def want() -> None:
            await asyncio.sleep(0.02)
            async with pool.lease("b"):
                order.append("b begins")

        await asyncio.gather(hold(), want())
        assert order == ["a ends", "b begins"]

    run(work)


def test_a_stream_of_requests_for_one_model_does_not_starve_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_pool, "TURN_SECONDS", 0.05)

    async def work() -> None:
        pool = ModelPool([model("a"), model("b")], budget_bytes=7, wait_seconds=10)
        stop = asyncio.Event()

        async def always() -> None:
            while not stop.is_set():
                async with pool.lease("a"):
                    await asyncio.sleep(0.03)

        busy = [asyncio.create_task(always()) for _ in range(3)]
        await asyncio.sleep(0.01)
        async with pool.lease("b") as served:
            assert served.state is ModelState.LOADED
        stop.set()
        await asyncio.gather(*busy)

    run(work)


def test_a_model_that_never_fits_is_refused_at_once() -> None:
    async def work() -> None:
        pool = ModelPool([model("a", 9)], budget_bytes=8)
        with pytest.raises(DoesNotFit, match="budget"):
            await pool.load("a")

    run(work)


def test_a_model_that_cannot_be_loaded_says_why_and_can_be_tried_again() -> None:
    broken = [True]

    def load() -> Built:
        if broken[0]:
            raise CheckpointError("torn")
        return Built()

    async def work() -> None:
        pool = ModelPool([model("a", load=load)], budget_bytes=8)
        with pytest.raises(CheckpointError, match="torn"):
            await pool.load("a")
        assert str(pool.default.error) == "torn"
        broken[0] = False
        assert (await pool.load("a")).error is None

    run(work)


def test_who_leaves_before_his_turn_loads_nothing() -> None:
    started = threading.Event()
    loads: list[str] = []

    def slow() -> Built:
        loads.append("a")
        started.set()
        time.sleep(0.1)
        return Built()

    def other() -> Built:
        loads.append("b")
        return Built()

    async def work() -> None:
        pool = ModelPool([model("a", load=slow), model("b", load=other)], budget_bytes=8)
        first = asyncio.create_task(pool.load("a"))
        await asyncio.to_thread(started.wait)
        second = asyncio.create_task(pool.load("b"))
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        await asyncio.sleep(0.05)
        assert loads == ["a"]
        assert [each.leases for each in pool.models] == [0, 0]

    run(work)


def test_an_unused_model_goes_after_its_time_and_a_used_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_pool, "LOOK_SECONDS", 0.01)

    async def work() -> None:
        pool = ModelPool([model("a"), model("b")], budget_bytes=8, idle_seconds=0.03)
        watch = asyncio.create_task(pool.watch())
        await pool.load("b")
        async with pool.lease("a") as used:
            await asyncio.sleep(0.15)
            assert used.state is ModelState.LOADED
            assert pool.find("b").state is ModelState.UNLOADED
        await asyncio.sleep(0.15)
        assert used.state is ModelState.UNLOADED
        watch.cancel()

    run(work)


def test_a_request_during_an_unloading_loads_again() -> None:
    class Slow(Built):
        def close(self) -> None:
            time.sleep(0.05)

    async def work() -> None:
        pool = ModelPool([model("a", load=Slow)], budget_bytes=8)
        await pool.load("a")
        unloading = asyncio.create_task(pool.unload("a"))
        await asyncio.sleep(0.01)
        assert pool.default.state is ModelState.UNLOADING
        async with pool.lease("a") as served:
            assert served.state is ModelState.LOADED
            assert served.model is not None
        await unloading

    run(work)


def test_a_model_in_use_is_not_unloaded_by_hand() -> None:
    async def work() -> None:
        pool = ModelPool([model("a")], budget_bytes=8)
        async with pool.lease("a"):
            with pytest.raises(ModelBusy):
                await pool.unload("a")
        assert (await pool.unload("a")).state is ModelState.UNLOADED

    run(work)


def test_names_are_known_with_their_tag_and_by_alias() -> None:
    async def work() -> None:
        pool = ModelPool([model("a"), model("org/b")], budget_bytes=8, aliases={"small": "a"})
        assert pool.find("a:latest").name == "a"
        assert pool.find("org/b").name == "org/b"
        assert pool.find("small").name == "a"
        assert pool.find(None).name == "a"
        with pytest.raises(ModelNotFound, match="a, org/b"):
            pool.find("c")

    run(work)
