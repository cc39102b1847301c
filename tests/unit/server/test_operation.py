"""What those who run a server see: health, metrics, limits, logs, models that come and go."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import Live, chat_model, live, served, until
from puppet_engine import Puppet

from crumb.errors import CheckpointError, UsageError
from crumb.server.served_model import ServedModel
from crumb.server.serving import listening_socket
from crumb.server.settings import ServerSettings

CHAT = "/v1/chat/completions"
SECRET = "a word that nobody else says"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": SECRET}], "ignore_eos": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("models") / "novella-chat")


@pytest.fixture(scope="module")
def limited(place: Path) -> Iterator[Puppet]:
    models = [served("novella", place)]
    limits = {"request_seconds": 1.0, "silence_seconds": 0.05, "most_tokens": 30}
    with live(lambda: models, **limits) as running:
        until(lambda: running.http.get("/health").status_code == 200)
        yield Puppet(running, models[0].model)


@pytest.fixture
def puppet(limited: Puppet) -> Puppet:
    limited.reset()
    return limited


def requests_in(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    facts = [record.facts for record in caplog.records if hasattr(record, "facts")]
    return [each for each in facts if each["event"] == "request"]


def metric(server: Live, name: str) -> float:
    said = re.search(rf"^{re.escape(name)} (\S+)$", server.http.get("/metrics").text, re.MULTILINE)
    return float(said[1]) if said else 0.0


def test_health_is_503_while_the_first_model_loads(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_load, load = threading.Event(), ServedModel.load

    def slow(self: ServedModel) -> Any:
        may_load.wait(20)
        return load(self)

    monkeypatch.setattr(ServedModel, "load", slow)
    with live(lambda: [served("novella", place)]) as running:
        answer = running.http.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "loading")
        assert running.http.get("/v1/models").status_code == 200, "the page works meanwhile"
        may_load.set()
        until(lambda: running.http.get("/health").json()["status"] == "ok")


def test_health_tells_why_the_first_model_cannot_be_loaded(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(self: ServedModel) -> Any:
        raise CheckpointError("torn", where=self.name)

    monkeypatch.setattr(ServedModel, "load", torn)
    with live(lambda: [served("novella", place)]) as running:
        until(lambda: running.http.get("/health").json()["status"] == "failed")
        answer = running.http.get("/health")
        assert answer.status_code == 503
        assert "torn" in answer.json()["error"]
        status, error = running.refused(CHAT, **ASK)
        assert status == 422
        assert "torn" in error["error"]["message"]


def test_metrics_count_under_the_names_of_vllm(server: Live) -> None:
    names = (
        'vllm:request_success_total{finished_reason="length"}',
        "vllm:generation_tokens_total",
        "vllm:prompt_tokens_total",
        "vllm:time_to_first_token_seconds_count",
        "vllm:e2e_request_latency_seconds_count",
    )
    before = [metric(server, name) for name in names]
    usage = server.post(CHAT, **ASK, max_tokens=7)["usage"]
    growth = [metric(server, name) - old for name, old in zip(names, before, strict=True)]
    assert growth == [1, 7, usage["prompt_tokens"], 1, 1]
    hits = metric(server, "vllm:prefix_cache_hits_total")
    server.post(CHAT, messages=[{"role": "user", "content": "The sea. " * 30}], max_tokens=1)
    server.post(CHAT, messages=[{"role": "user", "content": "The sea. " * 30}], max_tokens=1)
    assert metric(server, "vllm:prefix_cache_hits_total") > hits
    assert metric(server, "vllm:num_requests_running") == 0
    assert metric(server, 'crumb:memory_bytes{kind="peak"}') > 0


def always_drafts(speculators: Any, rooms: Any, rows: int) -> list[list[int]]:
    """Guesses wherever a text can be guessed, whether it pays or not."""
    pairs = zip(speculators, rooms, strict=True)
    return [each.draft(min(room, rows, 3)) for each, room in pairs]


def bytes_in(directory: Path) -> int:
    """Of all pages there."""
    return sum(path.stat().st_size for path in directory.glob("*.page"))


def test_metrics_tell_what_came_from_memory_from_disk_and_from_guesses(
    place: Path, tmp_path: Path
) -> None:
    said = "Come here, said the cat. Come here, said the dog. " * 5 + "Come here,"
    asked: dict[str, Any] = {"prompt": said, "max_tokens": 24, "temperature": 0}
    hits = [f"vllm:{kind}prefix_cache_hits_total" for kind in ("", "external_")]
    texts = []
    for is_again in (False, True):
        model = served("novella", place, cache_dir=tmp_path)
        with live(lambda model=model: [model]) as running:
            until(lambda: running.http.get("/health").status_code == 200)
            assert model.model is not None
            model.model.scheduler.speculation.drafts_for = always_drafts
            cached = []
            for _ in range(2):
                answer = running.post("/v1/completions", **asked)
                texts.append(answer["choices"][0]["text"])
                cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
            from_memory, from_disk = (metric(running, name) for name in hits)
            assert metric(running, "vllm:prompt_tokens_cached_total") == sum(cached)
            assert from_memory == cached[1] > 0
            assert from_disk == cached[0] == (cached[1] if is_again else 0)
            until(lambda: metric(running, "crumb:cache_disk_bytes") == bytes_in(tmp_path) > 0)
            drafts, drafted, accepted = (
                metric(running, f"vllm:spec_decode_num_{kind}_total")
                for kind in ("drafts", "draft_tokens", "accepted_tokens")
            )
            assert 0 < drafts <= drafted <= 3 * drafts
            assert accepted <= drafted
    assert len(set(texts)) == 1


def test_a_server_that_may_not_guess_gives_the_same_text(place: Path) -> None:
    said = "Come here, said the cat. " * 8 + "Come"
    texts = []
    for speculate in (True, False):
        model = served("novella", place)
        with live(lambda model=model: [model], speculate=speculate) as running:
            until(lambda: running.http.get("/health").status_code == 200)
            assert model.model is not None
            model.model.scheduler.speculation.drafts_for = always_drafts
            answer = running.post("/v1/completions", prompt=said, max_tokens=16, temperature=0)
            texts.append(answer["choices"][0]["text"])
            assert (metric(running, "vllm:spec_decode_num_drafts_total") > 0) is speculate
    assert texts[0] == texts[1]


def test_a_request_that_takes_too_long_is_ended(puppet: Puppet) -> None:
    puppet.seconds = 0.2
    status, answer = puppet.live.refused(CHAT, **ASK, max_tokens=30)
    assert status == 504
    assert "--request-seconds" in answer["error"]["message"]
    until(puppet.idle)
    events = puppet.live.events(CHAT, **ASK, max_tokens=30)
    assert "longer than it may" in events[-1]["error"]["message"]
    until(puppet.idle)


def test_a_reply_has_at_most_the_tokens_that_the_server_allows(puppet: Puppet) -> None:
    for asked in ({}, {"max_tokens": 100}):
        answer = puppet.live.post(CHAT, **ASK, **asked)
        assert answer["usage"]["completion_tokens"] == 30
        assert answer["choices"][0]["finish_reason"] == "length"


def test_a_silent_stream_says_that_it_lives(puppet: Puppet) -> None:
    puppet.seconds = 0.2
    body = {"model": "novella", "stream": True, "max_tokens": 2, "messages": ASK["messages"]}
    chat = puppet.live.http.post(CHAT, json=body)
    assert "\n: ping\n" in chat.text
    message = puppet.live.http.post("/v1/messages", json=body)
    assert message.text.count("event: ping") > 1
    del body["max_tokens"]
    lines = puppet.live.http.post("/api/chat", json=body | {"options": {"num_predict": 2}}).text
    assert "" not in lines.split("\n")[:-1], "a line of Ollama is never empty"


def test_no_word_of_a_prompt_or_an_answer_reaches_the_log(
    server: Live, caplog: pytest.LogCaptureFixture
) -> None:
    bodies = {"good": ASK | {"max_tokens": 12}, "bad": ASK | {"temperature": SECRET}}
    with caplog.at_level(logging.INFO, "crumb.server"):
        answers = {
            name: server.http.post(CHAT, json=body, headers={"x-request-id": name})
            for name, body in bodies.items()
        }
        # a line is written once all is sent; those of earlier requests may still come
        until(lambda: bodies.keys() <= {each["id"] for each in requests_in(caplog)})
    said = answers["good"].json()["choices"][0]["message"]["content"]
    facts = {each["id"]: each for each in requests_in(caplog)}
    first, second = (facts[name] for name in bodies)
    assert first["completion_tokens"] == 12
    assert (first["status"], second["status"]) == (200, 400)
    assert SECRET not in str(facts)
    assert said.strip() not in str(facts)


def test_an_answer_bears_the_id_of_its_request(server: Live) -> None:
    answer = server.http.post(CHAT, json=ASK | {"max_tokens": 1}, headers={"x-request-id": "mine"})
    assert answer.headers["x-request-id"] == "mine"
    other = server.http.post(CHAT, json=ASK | {"max_tokens": 1})
    assert other.headers["x-request-id"].startswith("req_")


def test_what_is_not_there_is_refused_in_words(server: Live) -> None:
    missing = server.http.get("/v1/nothing")
    assert missing.status_code == 404
    assert missing.json()["error"]["message"]
    wrong = server.http.get(CHAT)
    assert wrong.status_code == 405
    assert "GET" in wrong.json()["error"]["message"]
    assert isinstance(server.http.get("/api/chat").json()["error"], str)


def test_models_come_and_go_by_hand(place: Path) -> None:
    models = [served("a", place), served("b", place)]
    with live(lambda: models) as running:
        until(lambda: running.http.get("/health").status_code == 200)

        def states() -> list[str]:
            data = running.http.get("/v1/models").json()["data"]
            return [each["crumb"]["state"] for each in data]

        assert states() == ["loaded", "unloaded"]
        assert running.post("/v1/models/load", model="b")["success"]
        assert states() == ["loaded", "loaded"]
        running.post("/v1/models/unload", model="a")
        assert states() == ["unloaded", "loaded"]
        running.http.get("/metrics")
        assert states() == ["unloaded", "loaded"], "a scrape loads nothing"
        assert running.post(CHAT, model="a", **ASK, max_tokens=1)["model"] == "a"
        facts = running.http.get("/v1/models/a").json()["crumb"]
        assert facts["size_bytes"] > 0
        assert facts["context_tokens"] == 256
        assert facts["bits_per_weight"] > 1


def test_the_document_has_every_route_with_its_fields(server: Live) -> None:
    document = server.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert {CHAT, "/v1/messages", "/api/chat", "/v1/responses/{id}"} <= set(document["paths"])
    operation = document["paths"][CHAT]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    name = schema["$ref"].rpartition("/")[2]
    assert "max_completion_tokens" in document["components"]["schemas"][name]["properties"]


@pytest.mark.parametrize("port", [-1, 65536, 99999999])
def test_a_port_that_cannot_be_is_one_line(port: int) -> None:
    with pytest.raises(UsageError, match=f"127.0.0.1:{port}: this address cannot be listened on"):
        listening_socket(ServerSettings(port=port))
