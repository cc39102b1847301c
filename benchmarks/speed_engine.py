"""Speed of the engine beside llama.cpp on a random LLaMA of 1.10 billion parameters, in one run.

In: a folder for models, the python of an environment with llama-cpp-python, formats of ours and
types of theirs to pair. Out: JSON with the machine, Markdown tables: tokens per second of both as
medians over rounds, their ratio, and the share of the read bandwidth measured between the bursts.
Every round alternates: a read pass, a burst of ours, one of theirs. A round in which another
program took a processor away says so (processors below the threads).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from engine_bursts import OurEngine
from limits import read_bandwidth
from machine import describe_machine, one_line
from peers import Burst, Peer, write_gguf
from random_quantized import BILLION, write_quantized
from report import RESULTS, print_table, write_record

from crumb.exporting import Container, ExportRequest, export
from crumb.formats.catalog import parse_format
from crumb.run.memory_plan import WeightsKind

PAIRS = {
    "int2-g32-fixed": "Q2_K",
    "int2-g128-fixed": "Q2_K",
    "int3-g32-fixed": "Q3_K",
    "int3-g128-fixed": "Q3_K",
    "int4-g32-fixed": "Q4_0",
    "int4-g128-fixed": "Q4_K",
    "int5-g128-fixed": "Q5_K",
    "int6-g128-fixed": "Q6_K",
    "int8-g32-fixed": "Q8_0",
    "int8-g128-fixed": "Q8_0",
    "q2_k": "Q2_K",
    "q3_k": "Q3_K",
    "q4_k": "Q4_K",
}
"""Our format -> the type of theirs with as many bits. A type's own name means their very file."""


@dataclass(frozen=True)
class Kind:
    """One measured thing."""

    name: str
    tokens: int
    sequences: int = 0  # 0: a prompt is read

    def run(self, who: OurEngine | Peer) -> Burst:
        if not self.sequences:
            return who.prefill(self.tokens)
        return who.decode(self.tokens, self.sequences)


def make_kinds(asked: argparse.Namespace) -> list[Kind]:
    kinds = [Kind(f"prefill {tokens}", tokens) for tokens in asked.prefill]
    return kinds + [Kind(f"decode x{each}", asked.tokens, each) for each in asked.together]


def measure_pair(
    name: str, peer_type: str, threads: int, asked: argparse.Namespace
) -> dict[str, Any]:
    """All kinds of bursts of one format and its peer, some rounds."""
    folder, gguf = asked.folder / name, peer_file(peer_type, asked)
    if not folder.exists() and name == peer_type.lower():
        export(ExportRequest(str(gguf), folder, Container.CRUMB, strict=True))
    elif not folder.exists():
        write_quantized(folder, BILLION, parse_format(name))
    ours = OurEngine(folder, threads, WeightsKind.MAPPED)
    copied = OurEngine(folder, threads, WeightsKind.COPIED)
    kinds = make_kinds(asked)
    bursts: dict[str, dict[str, list[Burst]]] = {k.name: defaultdict(list) for k in kinds}
    reads: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    with Peer(asked.peer_python, gguf, threads) as peer:
        runners: dict[str, OurEngine | Peer] = {"ours": ours, "copied": copied, "theirs": peer}
        for _ in range(asked.rounds):
            for kind in kinds:
                reads[kind.name].append(read_bandwidth(threads))
                for who, runner in runners.items():
                    bursts[kind.name][who].append(kind.run(runner))
    return {
        "ours": name,
        "theirs": peer_type,
        "threads": threads,
        "token_bytes": ours.token_bytes(),
        "load_seconds": ours.load_seconds,
        "kinds": [summarize(kind, bursts[kind.name], reads[kind.name], ours) for kind in kinds],
    }


def peer_file(peer_type: str, asked: argparse.Namespace) -> Path:
    gguf: Path = asked.folder / f"{peer_type}.gguf"
    if not gguf.exists():
        write_gguf(asked.peer_python, gguf, peer_type)
    return gguf


def summarize(
    kind: Kind, bursts: dict[str, list[Burst]], reads: list[float], ours: OurEngine
) -> dict[str, Any]:
    """Medians of the rounds; shares and ratios are of the same round."""
    speeds = {who: median(b.tokens_per_second for b in found) for who, found in bursts.items()}
    record: dict[str, Any] = {
        "kind": kind.name,
        "tokens_per_second": speeds,
        "ratio": {who: ratio(bursts[who], bursts["theirs"]) for who in ("ours", "copied")},
        "read_bytes_per_second": median(reads),
        "processors": {who: min(b.processors for b in found) for who, found in bursts.items()},
        "bursts": {who: [asdict(burst) for burst in found] for who, found in bursts.items()},
    }
    if kind.sequences == 1:
        record["share_of_read"] = {
            who: median(
                ours.token_bytes() * burst.tokens_per_second / read
                for burst, read in zip(bursts[who], reads, strict=True)
            )
            for who in ("ours", "copied")
        }
    else:
        weights = ours.engine.plan.parameters() - BILLION.vocabulary * BILLION.hidden
        record["operations_per_second"] = 2 * weights * speeds["ours"]
    return record


def ratio(ours: list[Burst], theirs: list[Burst]) -> float:
    """The middle one of the rounds' ratios."""
    pairs = zip(ours, theirs, strict=True)
    return median(a.tokens_per_second / b.tokens_per_second for a, b in pairs)


def print_pair(measured: dict[str, Any]) -> None:
    print(f"\n{measured['ours']} beside {measured['theirs']}, {measured['threads']} threads\n")
    rows = []
    for kind in measured["kinds"]:
        shares = kind.get("share_of_read", {})
        speeds = kind["tokens_per_second"]
        rows.append(
            [
                kind["kind"],
                *(f"{speeds[who]:.1f}" for who in ("ours", "copied", "theirs")),
                *(f"{kind['ratio'][who]:.2f}" for who in ("ours", "copied")),
                " / ".join(f"{100 * share:.0f} %" for share in shares.values()),
                f"{kind['read_bytes_per_second'] / 1e9:.1f}",
                f"{min(kind['processors'].values()):.2f}",
            ]
        )
    columns = ["", "ours, tok/s", "weights copied", "llama.cpp", "ratio", "ratio, copied"]
    print_table([*columns, "share of read", "read, GB/s", "processors"], rows)


def main() -> None:
    numbers = lambda text: [int(word) for word in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="keeps models, about 6 GB")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--formats", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--threads", type=numbers, default=[2, 1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prefill", type=numbers, default=[1, 16, 64, 256, 1024])
    parser.add_argument("--together", type=numbers, default=[1, 16])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS / "speed_engine.json")
    parser.add_argument("--add", action="store_true", help="to the pairs that --out holds")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    print(one_line(machine))
    results = json.loads(asked.out.read_text())["results"] if asked.add else []
    for threads in asked.threads:
        for name in asked.formats:
            results.append(measure_pair(name, PAIRS[name], threads, asked))
            print_pair(results[-1])
            write_record(asked.out, {"machine": machine, "results": results})


if __name__ == "__main__":
    main()
