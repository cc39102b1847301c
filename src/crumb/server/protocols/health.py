"""GET /health and /metrics: what those who run a server ask.

In: nothing. Out: 200 while the first model is loaded, else 503 and why; counters as Prometheus
reads them. Neither loads a model or counts as a use of one.
"""

from __future__ import annotations

from crumb.server.document import document
from crumb.server.protocol import Call, HttpAnswer, Route
from crumb.server.served_model import ModelState

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


async def health(call: Call, body: None) -> None:
    """Whether requests are answered at once."""
    del body
    service = call.service
    first = service.pool.default
    is_idle = first.state is ModelState.UNLOADED and first.error is None and service.is_ready
    if service.is_ending:
        status, text = 503, "ending"
    elif first.state is ModelState.LOADED or is_idle:
        status, text = 200, "ok"
    else:
        status, text = 503, "loading" if first.error is None else "failed"
    error = None if first.error is None else str(first.error)
    content = {"status": text, "model": first.name, "error": error}
    await call.answer(HttpAnswer(content, status))


async def metrics(call: Call, body: None) -> None:
    """All counters."""
    del body
    service = call.service
    loaded = [each.model for each in service.pool.models if each.model is not None]
    counted = service.metrics
    counted.models_loaded.set(len(loaded))
    counted.running.set(sum(each.scheduler.running for each in loaded))
    counted.waiting.set(sum(each.scheduler.waiting for each in loaded))
    counted.cache_use.set(max((each.engine.cache_use for each in loaded), default=0.0))
    stores = [each.engine.store for each in loaded]
    disk_bytes = (store.total_bytes for store in stores if store is not None)
    counted.cache_disk_bytes.set(max(disk_bytes, default=0))  # one directory has them all
    await call.answer(HttpAnswer(counted.text(), media_type=PROMETHEUS))


ROUTES = (
    Route("GET", "/health", health, about="Whether the server is ready", open=True),
    Route("GET", "/openapi.json", document, about="This document", in_document=False),
    Route("GET", "/metrics", metrics, about="Counters for Prometheus"),
)
