"""What the server counts, in Prometheus' text format, under vLLM's names where they mean the same.

In: requests as they begin and end, models as they are. Out: the text of /metrics. Gauges are asked
of the models when somebody looks, which loads none and resets no idle time.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from crumb.machine.memory import peak_memory_bytes, resident_bytes
from crumb.run.generation import Generation

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
BETWEEN_TOKENS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
REASONS = {
    "end": "stop",
    "stop_string": "stop",
    "tool_calls": "stop",
    "max_tokens": "length",
    "context": "length",
}
"""Why a reply ended -> vLLM's word for it."""

TOKENS = tuple(float(1 << power) for power in range(0, 18, 2))

disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """All counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "From the request to its first token", SECONDS
        )
        self._next_token = self._histogram(
            "vllm:inter_token_latency_seconds", "Between tokens as they leave", BETWEEN_TOKENS
        )
        self._whole = self._histogram(
            "vllm:e2e_request_latency_seconds", "From the request to its end", SECONDS
        )
        self._queue = self._histogram(
            "vllm:request_queue_time_seconds", "Until a request was begun", SECONDS
        )
        self._prefill = self._histogram(
            "vllm:request_prefill_time_seconds", "Reading a prompt", SECONDS
        )
        self._decode = self._histogram(
            "vllm:request_decode_time_seconds", "From the prompt to the end", SECONDS
        )
        self._prompt = self._histogram("vllm:request_prompt_tokens", "Tokens of a prompt", TOKENS)
        self._generated = self._histogram(
            "vllm:request_generation_tokens", "Tokens of a reply", TOKENS
        )
        self._finished = Counter(
            "vllm:request_success",
            "Requests that ended, by reason",
            ["finished_reason"],
            registry=self.registry,
        )
        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Tokens of prompts")
        self._cached_tokens = self._counter("vllm:prompt_tokens_cached", "Of them, cached")
        self._queries = self._counter("vllm:prefix_cache_queries", "Tokens looked for in the cache")
        self._hits = self._counter("vllm:prefix_cache_hits", "Tokens that were in the cache")
        self._restored = self._counter(
            "vllm:external_prefix_cache_hits", "Tokens that were not, but on disk"
        )
        self._drafts = self._counter("vllm:spec_decode_num_drafts", "Steps that ran guessed tokens")
        self._drafted = self._counter("vllm:spec_decode_num_draft_tokens", "Guessed tokens")
        self._accepted = self._counter(
            "vllm:spec_decode_num_accepted_tokens", "Guessed tokens that were right"
        )
        self._generated_tokens = self._counter("vllm:generation_tokens", "Tokens generated")
        self._responses = Counter(
            "crumb:http_responses",
            "Answers of the server",
            ["route", "status"],
            registry=self.registry,
        )
        self.running = self._gauge("vllm:num_requests_running", "Requests at work")
        self.waiting = self._gauge("vllm:num_requests_waiting", "Requests that wait")
        self.cache_use = self._gauge("vllm:kv_cache_usage_perc", "Share of the cache that is held")
        self.cache_disk_bytes = self._gauge(
            "crumb:cache_disk_bytes", "Bytes in the directory of the cache"
        )
        self.models_loaded = self._gauge("crumb:models_loaded", "Models in memory")
        self.memory = Gauge(
            "crumb:memory_bytes", "Memory of the process", ["kind"], registry=self.registry
        )

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, about, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(name, about, registry=self.registry)

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(name, about, registry=self.registry)

    def first_token(self, seconds: float) -> None:
        """A reply has begun."""
        self._first_token.observe(seconds)

    def next_token(self, seconds: float) -> None:
        """A reply has gone on."""
        self._next_token.observe(seconds)

    def finished(self, reason: str, generation: Generation) -> None:
        """A reply has ended."""
        timings = generation.timings
        self._finished.labels(REASONS[reason]).inc()
        self._queue.observe(timings.queue_seconds)
        self._prefill.observe(timings.prompt_seconds)
        self._decode.observe(timings.decode_seconds)
        self._whole.observe(timings.queue_seconds + timings.prompt_seconds + timings.decode_seconds)
        self.read(generation.prompt_tokens, generation.cached_tokens, generation.restored_tokens)
        self._drafts.inc(generation.drafts)
        self._drafted.inc(generation.drafted_tokens)
        self._accepted.inc(generation.accepted_tokens)
        self._generated.observe(generation.completion_tokens)
        self._generated_tokens.inc(generation.completion_tokens)

    def left(self, requests: int) -> None:
        """Replies were ended because nobody reads them."""
        if requests:
            self._finished.labels("abort").inc(requests)

    def read(self, prompt_tokens: int, cached_tokens: int = 0, restored_tokens: int = 0) -> None:
        """A prompt was read; of the cached tokens some came from disk."""
        self._prompt.observe(prompt_tokens)
        self._prompt_tokens.inc(prompt_tokens)
        self._cached_tokens.inc(cached_tokens)
        self._queries.inc(prompt_tokens)
        self._hits.inc(cached_tokens - restored_tokens)
        self._restored.inc(restored_tokens)

    def responded(self, route: str, status: int) -> None:
        """An answer was sent."""
        self._responses.labels(route, str(status)).inc()

    def text(self) -> bytes:
        """What /metrics shows."""
        self.memory.labels("now").set(resident_bytes())
        self.memory.labels("peak").set(peak_memory_bytes())
        return generate_latest(self.registry)
