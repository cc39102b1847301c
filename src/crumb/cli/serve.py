"""`crumb serve`: answer the clients of OpenAI, Anthropic and Ollama over HTTP, with a chat page.

In: models, and what the server is told; each flag has a variable, --port is CRUMB_PORT. Out: logs
on stderr until it is told to end. Without a model it serves the one inside this package.
Refuses an address beyond this machine without a key, and a model that does not fit the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.config import Env

from crumb.checkpoints.checkpoint import Checkpoint
from crumb.checkpoints.huggingface.hub import locate
from crumb.cli.generation_options import ENGINE_DEFAULTS, EngineOptions
from crumb.cli.option_groups import ACCESS, LIMITS, ONE_WAY
from crumb.cli.output import bytes_text, log
from crumb.cli.small_models import SMALL_MODELS
from crumb.errors import CrumbError, UsageError
from crumb.machine.memory import available_bytes
from crumb.run.memory_plan import EngineSettings, check_fits
from crumb.run.page_store import open_directory
from crumb.run.program import plan_engine
from crumb.server.application import application
from crumb.server.model_pool import ModelPool
from crumb.server.naming import models_in, named_models
from crumb.server.served_model import ServedModel
from crumb.server.serving import listening_socket, log_to_stderr
from crumb.server.serving import serve as serve_application
from crumb.server.settings import ServerSettings

EMBEDDED = "novella-7m"
LEAST_CONTEXT_OF_AGENTS = 32768
"""Below this the prompts of coding agents alone do not fit."""

CACHE_SHARE = 4
"""One part in so many of the free memory is the cache, where nothing is said."""

MOST_SEQUENCES = 16
"""Of full length, that the cache has room for where nothing is said."""


@ACCESS
@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class AccessOptions:
    """Who may ask.

    Attributes:
        host: the address to listen on; beyond this machine a key is needed.
        port: the port to listen on.
        api_key: a key that clients must send; repeatable.
        no_auth: answer beyond this machine without a key.
        allowed_host: a further name that clients may ask under; repeatable.
        allowed_origin: a page of another origin that may ask, such as https://chat.example;
            repeatable.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: Annotated[tuple[str, ...], Parameter(negative=())] = ()
    no_auth: Annotated[bool, Parameter(negative=())] = False
    allowed_host: Annotated[tuple[str, ...], Parameter(negative=())] = ()
    allowed_origin: Annotated[tuple[str, ...], Parameter(negative=())] = ()


@LIMITS
@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """How much is taken.

    Attributes:
        memory: bytes for all loaded models together, such as 8GiB; by default what is free.
        cache_memory: bytes of each model's cache, which all its conversations share; by default a
            quarter of what is free, for at most 16 of full length.
        cache_disk: bytes that the directory of --cache-dir may hold; the pages that were not used
            for the longest time go first.
        waiting: requests that may wait for a model; one more is told to come later.
        max_tokens: most tokens of one reply.
        body_bytes: most bytes of a request.
        request_seconds: most seconds of a request, its answer included; 0 is no limit.
        idle_seconds: unload a model that was not used for so long; 0 is never.
        wait_seconds: how long a request may wait until other models leave memory for its own.
        ping_seconds: say in a silent stream that it lives, after so long; 0 is never.
        shutdown_seconds: how long requests may go on when the server is told to end.
    """

    memory: str | None = None
    cache_memory: str | None = None
    cache_disk: str = "8GiB"
    waiting: int = 256
    max_tokens: int | None = None
    body_bytes: int = 8 << 20
    request_seconds: float = 3600.0
    idle_seconds: float = 0.0
    wait_seconds: float = 60.0
    ping_seconds: float = 15.0
    shutdown_seconds: float = 30.0


ACCESS_DEFAULTS, LIMIT_DEFAULTS = AccessOptions(), LimitOptions()


def serve(
    models: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    /,
    *,
    model: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    models_dir: Path | None = None,
    alias: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    access: AccessOptions = ACCESS_DEFAULTS,
    limits: LimitOptions = LIMIT_DEFAULTS,
    engine: EngineOptions = ENGINE_DEFAULTS,
    speculate: bool = True,
    log_prompts: Annotated[bool, ONE_WAY] = False,
) -> None:
    """Answer over HTTP as OpenAI, Anthropic and Ollama do, with a chat page.

    Args:
        models: directories, .gguf files or names of the hub; the first is loaded at once, the
            others when they are asked for.
        model: a model under a name of its own, as NAME=MODEL; repeatable.
        models_dir: a directory whose models are all served.
        alias: a further name of a model, as NAME=MODEL; repeatable.
        speculate: guess tokens from the text so far where that pays; the text is the same.
        log_prompts: write what clients send into the log.
    """
    named = dict(named_models(models, model))
    inside = models_in(models_dir) if models_dir is not None else {}
    if not named and not inside:
        named = {EMBEDDED: EMBEDDED}
        log(f"no model given: {EMBEDDED}, which continues stories, is served. Models that chat:")
        for small in SMALL_MODELS:
            if small.chats:
                log(f"    crumb serve {small.name}    fetches {small.size} once")
    settings = server_settings(access, limits, speculate, log_prompts)
    if engine.cache_dir is not None:
        open_directory(engine.cache_dir)  # said now, not when a model is loaded
    others = aliases(alias)
    budget = size_bytes(limits.memory, "--memory") or available_bytes()
    planner = Planner(engine, limits)
    served = planner.open_all(named, inside)
    check_fits(served[0].plan, served[0].checkpoint.path)

    def pool_of(tell: Callable[[str, ServedModel], None]) -> ModelPool:
        return ModelPool(
            served,
            budget_bytes=budget,
            aliases=others,
            idle_seconds=limits.idle_seconds or None,
            wait_seconds=limits.wait_seconds,
            tell=tell,
        )

    for each in served:
        log(describe(each))
    log_to_stderr()
    with closing(listening_socket(settings)) as opened:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        port = opened.getsockname()[1]
        log(f"http://{host}:{port}/ is the chat page; /v1 is the address of clients")
        serve_application(application(settings, pool_of), settings, opened)


def server_settings(
    access: AccessOptions, limits: LimitOptions, speculate: bool, log_prompts: bool
) -> ServerSettings:
    """The flags as the server has them. Raises: UsageError."""
    return ServerSettings(
        host=access.host,
        port=access.port,
        keys=access.api_key,
        no_auth=access.no_auth,
        hosts=access.allowed_host,
        origins=access.allowed_origin,
        body_bytes=limits.body_bytes,
        request_seconds=limits.request_seconds or None,
        most_tokens=limits.max_tokens,
        silence_seconds=limits.ping_seconds or None,
        shutdown_seconds=limits.shutdown_seconds,
        speculate=speculate,
        log_prompts=log_prompts,
    )


@dataclass(frozen=True)
class Planner:
    """Opens models, each with an engine that fits the memory."""

    engine: EngineOptions
    limits: LimitOptions

    def open_all(self, named: Mapping[str, str], inside: Mapping[str, str]) -> list[ServedModel]:
        """Models that were named, and those of a directory. Raises: for the named ones."""
        served = [self.open(name, where) for name, where in named.items()]
        for name, where in inside.items():
            try:
                served.append(self.open(name, where))
            except CrumbError as error:
                log(f"crumb: warning: {name} is left out: {error}")
        if not served:
            raise UsageError("none of these models can be served")
        return served

    def open(self, name: str, where: str) -> ServedModel:
        path = locate(where)
        return ServedModel.open(name, path, self.settings, self.limits.waiting, where == EMBEDDED)

    def settings(self, checkpoint: Checkpoint) -> EngineSettings:
        """An engine whose cache has as many sequences as its memory holds. Raises: UsageError."""
        one = self.engine.settings(checkpoint)
        budget = size_bytes(self.limits.cache_memory, "--cache-memory")
        per_sequence = plan_engine(checkpoint, one).cache_bytes
        if budget is None:
            budget = min(available_bytes() // CACHE_SHARE, MOST_SEQUENCES * per_sequence)
        sequences = max(1, budget // max(per_sequence, 1))
        disk = size_bytes(self.limits.cache_disk, "--cache-disk")
        settings = self.engine.settings(checkpoint, sequences)
        return replace(settings, cache_disk_bytes=disk or settings.cache_disk_bytes)


def describe(served: ServedModel) -> str:
    """A model in one line."""
    line = (
        f"{served.name}: {bytes_text(served.size_bytes)}, "
        f"{served.bits_per_weight:.2f} bits per weight, context {served.context_tokens}, "
        f"cache for {served.settings.sequences} of them; takes "
        f"{bytes_text(served.plan.total_bytes)} of memory"
    )
    if served.context_tokens < LEAST_CONTEXT_OF_AGENTS:
        line += f"; coding agents need --context {LEAST_CONTEXT_OF_AGENTS}"
    return line


def aliases(words: tuple[str, ...]) -> dict[str, str]:
    """Alias -> model. Raises: UsageError."""
    pairs = [word.partition("=") for word in words]
    for name, equals, target in pairs:
        if not (name and equals and target):
            raise UsageError("an alias has a name and a model", found=name, expected="NAME=MODEL")
    return {name: target for name, _, target in pairs}


UNITS: dict[str, int] = {"": 1, "B": 1} | {
    prefix + unit: int(size**power)
    for power, prefix in enumerate("KMGT", 1)
    for unit, size in (("iB", 1024), ("B", 1000), ("", 1024))
}


def size_bytes(word: str | None, where: str) -> int | None:
    """Bytes from a number and a unit, 8GiB. Raises: UsageError."""
    if word is None:
        return None
    number = word.strip().rstrip("BiKMGTbkmgt")
    unit = word.strip()[len(number) :].upper().replace("I", "i")
    try:
        size = round(float(number) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size <= 0:
        raise UsageError("not a size", where=where, expected="such as 8GiB", found=word[:40])
    return size


serve_app = App(name="serve", config=Env("CRUMB_", command=False), help_format="plaintext")
serve_app.default(serve)
