"""A server under rude clients for a while: does it stay, and does it still tell the truth?

In: a model, minutes, numbers of polite and rude clients. Out: how often each rudeness was met, the
answers to polite clients that were not as the answer alone (none may be), the memory over time, and
what is held in the end. Exits 1 where an answer differed, memory grew, or a place is still taken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from http_load import HOST, ask, head_of
from machine import describe_machine, one_line
from report import RESULTS, write_record
from serving import PATH, body_of, model_file, ours, prompt_of

GROWTH = 1.25
"""Memory at the end over that after the first fifth; more is growth."""

LOOK_SECONDS = 5.0

Rudeness = Callable[[int, random.Random], Awaitable[None]]


async def _opened(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(HOST, port)


async def _send(port: int, content: bytes, path: str = PATH, read: int = 256) -> None:
    reader, writer = await _opened(port)
    try:
        writer.write(head_of(path, len(content)) + content)
        await writer.drain()
        await asyncio.wait_for(reader.read(read), 60)
    finally:
        writer.close()


async def leaves(port: int, draw: random.Random) -> None:
    """Goes in the middle of a stream."""
    body = body_of(prompt_of(draw.randrange(10**6), 20), 400) | {"stream": True}
    await _send(port, json.dumps(body).encode(), read=draw.choice((1, 200, 3000)))


async def leaves_unread(port: int, draw: random.Random) -> None:
    """Goes before anything came, from an answer that is no stream."""
    body = json.dumps(body_of(prompt_of(draw.randrange(10**6), 20), 400)).encode()
    _, writer = await _opened(port)
    writer.write(head_of(PATH, len(body)) + body)
    await writer.drain()
    await asyncio.sleep(draw.random())
    writer.close()


async def reads_slowly(port: int, draw: random.Random) -> None:
    """Takes a few bytes at a time through a small window."""
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    opened.setblocking(False)
    await asyncio.get_running_loop().sock_connect(opened, (HOST, port))
    reader, writer = await asyncio.open_connection(sock=opened, limit=256)
    body = json.dumps(body_of(prompt_of(draw.randrange(10**6), 20), 60) | {"stream": True}).encode()
    try:
        writer.write(head_of(PATH, len(body)) + body)
        await writer.drain()
        for _ in range(20):
            await asyncio.wait_for(reader.read(64), 60)
            await asyncio.sleep(0.2)
    finally:
        writer.close()


async def sends_much(port: int, draw: random.Random) -> None:
    """A body that is larger than any may be."""
    del draw
    reader, writer = await _opened(port)
    try:
        writer.write(head_of(PATH, 1 << 30) + b"x" * (1 << 16))
        await writer.drain()
        await asyncio.wait_for(reader.read(256), 60)
    finally:
        writer.close()


async def sends_slowly(port: int, draw: random.Random) -> None:
    """A head of which a byte comes now and then."""
    _, writer = await _opened(port)
    try:
        for byte in b"POST /v1/completions HTTP/1.1\r\nHost":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(draw.random())
    finally:
        writer.close()


def _content(make: Callable[[random.Random], bytes]) -> Rudeness:
    async def rude(port: int, draw: random.Random) -> None:
        await _send(port, make(draw))

    return rude


RUDE: dict[str, Rudeness] = {
    "leaves a stream": leaves,
    "leaves unread": leaves_unread,
    "reads slowly": reads_slowly,
    "sends much": sends_much,
    "sends a head slowly": sends_slowly,
    "is not UTF-8": _content(lambda draw: b'{"model": "m", "prompt": "\xff\xfe\xfa"}'),
    "50 KB of prompt": _content(
        lambda draw: json.dumps({"model": "m", "prompt": "word " * 10000}).encode()
    ),
    "NaN": _content(lambda draw: b'{"model": "m", "prompt": "x", "temperature": NaN}'),
    "deep JSON": _content(lambda draw: b'{"a":' * 50000),
    "random bytes": _content(lambda draw: draw.randbytes(300)),
    "no HTTP": lambda port, draw: _raw(port, draw.randbytes(200)),
}


async def _raw(port: int, content: bytes) -> None:
    reader, writer = await _opened(port)
    try:
        writer.write(content + b"\r\n\r\n")
        await writer.drain()
        await asyncio.wait_for(reader.read(64), 60)
    finally:
        writer.close()


class Soak:
    """One run."""

    def __init__(self, port: int, prompts: int, tokens: int) -> None:
        self._port, self._tokens = port, tokens
        self._prompts = [prompt_of(4200 + k, 20) for k in range(prompts)]
        self._alone: list[str] = []
        self.met: Counter[str] = Counter()
        self.answers = self.refused = 0
        self.wrong: list[str] = []
        self.memory: list[tuple[float, int]] = []

    async def run(self, minutes: float, polite: int, rude: int) -> None:
        """Answers alone first, then everybody together."""
        for prompt in self._prompts:
            self._alone.append((await ask(self._port, PATH, body_of(prompt, self._tokens))).text)
        end = time.monotonic() + 60 * minutes
        tasks = [self._polite(k, end) for k in range(polite)]
        tasks += [self._rude(k, end) for k in range(rude)]
        await asyncio.gather(*tasks, self._watch(end))

    async def _polite(self, number: int, end: float) -> None:
        draw = random.Random(number)
        while time.monotonic() < end:
            which = draw.randrange(len(self._prompts))
            heard = await ask(self._port, PATH, body_of(self._prompts[which], self._tokens))
            if heard.status == 503:
                self.refused += 1
                await asyncio.sleep(draw.random())
                continue
            self.answers += 1
            if heard.status != 200 or heard.text != self._alone[which]:
                self.wrong.append(f"{heard.status}: {heard.text[:80]!r}")

    async def _rude(self, number: int, end: float) -> None:
        draw = random.Random(10_000 + number)
        while time.monotonic() < end:
            name = draw.choice(list(RUDE))
            try:
                await RUDE[name](self._port, draw)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                self.met[f"{name}: cut off"] += 1
            self.met[name] += 1

    async def _watch(self, end: float) -> None:
        begin = time.monotonic()
        while time.monotonic() < end:
            figures = await asyncio.to_thread(metrics, self._port)
            self.memory.append((time.monotonic() - begin, int(figures["memory_now"])))
            await asyncio.sleep(LOOK_SECONDS)


def metrics(port: int) -> dict[str, float]:
    """What the server says of itself."""
    text = urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=60).read().decode()

    def value(name: str) -> float:
        said = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(said[1]) if said else float("nan")

    return {
        "memory_now": value('crumb:memory_bytes{kind="now"}'),
        "running": value("vllm:num_requests_running"),
        "waiting": value("vllm:num_requests_waiting"),
        "cache_use": value("vllm:kv_cache_usage_perc"),
    }


def main() -> None:
    """Run, print, write, and say whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a file, or smollm2")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--polite", type=int, default=32)
    parser.add_argument("--rude", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    parser.set_defaults(speculate=True)
    options = parser.parse_args()
    options.model = str(model_file(options.model, options))
    machine = describe_machine()
    print(one_line(machine))
    with ours(options) as port:
        soak = Soak(port, 8, options.tokens)
        asyncio.run(soak.run(options.minutes, options.polite, options.rude))
        left: dict[str, float] = {}
        for _ in range(100):
            left = metrics(port)
            if left["running"] == left["waiting"] == 0:
                break
            time.sleep(0.1)
    fifth = soak.memory[len(soak.memory) // 5][1]
    growth = soak.memory[-1][1] / fifth
    print(f"{soak.answers} polite answers, {len(soak.wrong)} wrong, {soak.refused} refused")
    print(f"rude: {dict(soak.met)}")
    print(f"memory {fifth / 1e6:.0f} -> {soak.memory[-1][1] / 1e6:.0f} MB; left {left}")
    record: dict[str, Any] = {
        "machine": machine,
        "answers": soak.answers,
        "wrong": soak.wrong,
        "refused": soak.refused,
        "rude": dict(soak.met),
        "memory": soak.memory,
        "left": left,
    }
    write_record(options.out, record)
    is_held = left["running"] or left["waiting"] or left["cache_use"]
    raise SystemExit(bool(soak.wrong) or growth > GROWTH or bool(is_held))


if __name__ == "__main__":
    main()
