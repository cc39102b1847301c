"""One running server for all tests of this folder: the embedded model with a chat template."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live_server import Live, chat_model, live, served, until


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    path = chat_model(tmp_path_factory.mktemp("models") / "novella-chat")
    with live(lambda: [served("novella", path)], log_prompts=False) as running:
        until(lambda: running.http.get("/health").status_code == 200)
        yield running
