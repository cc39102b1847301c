"""schemathesis over the published OpenAPI document: whatever it sends, no 5xx comes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from live_server import Live, chat_model, live, served, until

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]

EXAMPLES = 40
"""Requests of each operation."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    path = chat_model(tmp_path_factory.mktemp("models") / "novella-chat")
    with live(lambda: [served("novella", path, context=64)], most_tokens=4) as running:
        until(lambda: running.http.get("/health").status_code == 200)
        yield running


def test_no_request_of_the_document_is_answered_with_a_5xx(server: Live) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, given, settings

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) > 20
    statuses: list[int] = []

    def send(case: Any) -> None:
        answer = case.call(timeout=30)
        statuses.append(answer.status_code)
        assert answer.status_code < 500, (answer.status_code, answer.text[:300])

    for operation in operations:
        bounded = settings(
            max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck)
        )
        bounded(given(case=operation.as_strategy())(send))()
    assert 200 in statuses, "some of them were answered"
    assert len(statuses) > EXAMPLES
