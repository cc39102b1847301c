"""A server of this process, on a port of its own, for tests that talk to it over HTTP.

In: models and settings. Out: a running server and a client for it; both end with the `with`.
The chat model is the embedded one with a chat template beside it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from crumb.embedded import MODELS
from crumb.run.load import engine_settings
from crumb.server.application import application
from crumb.server.model_pool import ModelPool
from crumb.server.served_model import ServedModel
from crumb.server.serving import configuration, listening_socket
from crumb.server.settings import ServerSettings

NOVELLA = MODELS["novella-7m"]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
GIB = 1 << 30


def chat_model(directory: Path) -> Path:
    """The embedded model with a chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in NOVELLA.iterdir():
        if file.is_file():
            (directory / file.name).symlink_to(file)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


def served(
    name: str, path: Path, *, context: int = 256, sequences: int = 8, waiting: int = 64, **more: Any
) -> ServedModel:
    """A model of a server, small and on one thread."""
    return ServedModel.open(
        name,
        path,
        lambda checkpoint: replace(
            engine_settings(checkpoint.plan, context, sequences), threads=1, **more
        ),
        waiting,
    )


class Live:
    """A running server."""

    def __init__(self, server: uvicorn.Server, port: int, logs: list[Mapping[str, Any]]) -> None:
        self.server, self.port, self.logs = server, port, logs
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx2.Client(base_url=self.url, timeout=60.0, trust_env=False)

    def post(self, path: str, **body: Any) -> Any:
        """An answer's JSON, which must be a success."""
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, path: str, **body: Any) -> tuple[int, Any]:
        """Status and JSON of an answer that is none."""
        answer = self.http.post(path, json=body)
        assert answer.status_code >= 400, answer.text
        return answer.status_code, answer.json()

    def events(self, path: str, **body: Any) -> list[Any]:
        """The data of a stream's events, [DONE] as it is."""
        answer = self.http.post(path, json=body | {"stream": True})
        assert answer.status_code == 200, answer.text
        lines = [line for line in answer.text.split("\n") if line.startswith("data: ")]
        return [data_of(line) for line in lines]


def data_of(line: str) -> Any:
    """What an event's line holds."""
    text = line.removeprefix("data: ")
    return text if text == "[DONE]" else json.loads(text)


@contextmanager
def live(
    models: Callable[[], Sequence[ServedModel]],
    *,
    budget_bytes: int = 8 * GIB,
    pool: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Live]:
    """A server that answers when the `with` begins."""
    chosen = ServerSettings(port=0, **settings)
    opened = listening_socket(chosen)

    def pool_of(tell: Callable[[str, ServedModel], None]) -> ModelPool:
        return ModelPool(models(), budget_bytes=budget_bytes, tell=tell, **(pool or {}))

    server = uvicorn.Server(configuration(application(chosen, pool_of), chosen))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, daemon=True)
    thread.start()
    running = Live(server, opened.getsockname()[1], [])
    try:
        until(lambda: server.started)
        yield running
    finally:
        running.http.close()
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server has ended"


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError("it has not become true")
