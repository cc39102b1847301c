"""Other programs as peers of a benchmark: each a process of its own, asked one burst at a time.

In: the python of an environment that has the peer, a model file, threads. Out: tokens per second
of one burst, so that bursts of ours, of theirs and of a read pass can alternate in one run.
Refuses what the peer refuses: an answer that holds an error ends the benchmark with its text.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from limits import read_bandwidth

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Burst:
    """One timed piece of a peer's work."""

    seconds: float
    processor_seconds: float  # of all threads
    tokens: int  # of all sequences together

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def processors(self) -> float:
        """As many as threads, unless another program took processors away."""
        return self.processor_seconds / self.seconds


class Peer:
    """llama.cpp behind a pipe; between two requests it only waits."""

    def __init__(
        self, python: str | Path, gguf: Path, threads: int, repacked: bool = False
    ) -> None:
        program = [str(python), str(HERE / peer_program(python)), str(gguf)]
        program += ["--repacked"] if repacked else []
        self.process = subprocess.Popen(
            [*program, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about = self._read()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def prefill(self, tokens: int) -> Burst:
        """One prompt as one batch."""
        return self._ask({"run": "prefill", "tokens": tokens})

    def decode(self, tokens: int, sequences: int = 1, prompt: int = 16) -> Burst:
        """`tokens` steps of `sequences` sequences together, each after its own short prompt."""
        request = {"run": "decode", "tokens": tokens, "sequences": sequences, "prompt": prompt}
        return self._ask(request)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()

    def _ask(self, request: dict[str, Any]) -> Burst:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Burst(**self._read())

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the peer ended with exit code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self.close()
            raise SystemExit(f"the peer: {answer['error']}")
        return answer


def peer_program(python: str | Path) -> str:
    """The file that speaks for llama.cpp, by the package that an environment has."""
    has = "import importlib.util as u, sys; sys.exit(u.find_spec('xllamacpp') is None)"
    alone = subprocess.run([str(python), "-c", has]).returncode
    return "llama_cpp_peer.py" if alone else "xllamacpp_peer.py"


def write_gguf(python: str | Path, path: Path, type_name: str, **sizes: int) -> None:
    """Write a random model with gguf_llama.py in the peer's environment; sizes as its flags."""
    words = [word for name, size in sizes.items() for word in (flag(name), str(size))]
    program = [str(python), str(HERE / "gguf_llama.py"), "--type", type_name, "--out", str(path)]
    if subprocess.run([*program, *words]).returncode:
        raise SystemExit(f"gguf_llama.py did not write {type_name}")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def try_peer(asked: argparse.Namespace) -> dict[str, Any]:
    """Every kind of burst some times, read passes between; medians."""
    kinds = {f"prefill {tokens}": ("prefill", tokens, 1) for tokens in asked.prefill}
    kinds |= {f"decode {each} together": ("decode", asked.tokens, each) for each in asked.together}
    bursts: dict[str, list[Burst]] = {name: [] for name in kinds}
    reads: list[float] = []
    with Peer(asked.python, asked.gguf, asked.threads) as peer:
        for _ in range(asked.rounds):
            for name, (kind, tokens, sequences) in kinds.items():
                reads.append(read_bandwidth(asked.threads))
                decode = kind == "decode"
                bursts[name].append(
                    peer.decode(tokens, sequences) if decode else peer.prefill(tokens)
                )
        about = peer.about
    return {
        "peer": about,
        "read_bytes_per_second": [round(min(reads)), round(median(reads)), round(max(reads))],
        "tokens_per_second": {
            name: round(median(burst.tokens_per_second for burst in found), 2)
            for name, found in bursts.items()
        },
        "processors": {
            name: round(median(burst.processors for burst in found), 2)
            for name, found in bursts.items()
        },
        "bursts": {name: [asdict(burst) for burst in found] for name, found in bursts.items()},
    }


def main() -> None:
    numbers = lambda text: [int(word) for word in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--python", default=sys.executable, help="of the peer's environment")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prefill", type=numbers, default=[1, 16, 64, 256, 1024])
    parser.add_argument("--together", type=numbers, default=[1, 16])
    parser.add_argument("--tokens", type=int, default=32)
    print(json.dumps(try_peer(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
