"""GGUF's own types: the same random files run by us and by ik_llama.cpp, and beside our formats.

In: a folder for models, the python of an environment with ik-llama-cpp-python. Out: JSON with the
machine, two Markdown tables. One has our AVX2 beside their AVX2 build, our weights mapped and
copied, theirs as they lie and repacked into memory; the ratio is of the faster ones. One has our
types beside our int4 with another instruction set. Every round alternates all that are compared;
what counts is the fastest burst of each, which other programs on the machine disturb least.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alone import measure_alone
from engine_bursts import OurEngine
from machine import describe_machine, one_line
from peers import Burst, Peer, write_gguf
from random_quantized import BILLION, write_quantized
from report import RESULTS, print_table, write_record

from crumb.exporting import Container, ExportRequest, export
from crumb.formats.catalog import parse_format
from crumb.run.memory_plan import WeightsKind

TYPES = {
    "Q4_0": "int4-g32-fixed",
    "Q2_K": "int4-g128-fixed",
    "Q3_K": "int4-g128-fixed",
    "Q4_K": "int4-g32-fixed",
    "Q5_K": "int4-g32-fixed",
    "Q6_K": "int4-g32-fixed",
}
"""Type -> the format of ours that it is held against."""
KINDS = ("prefill", "decode")
OURS = {"ours": WeightsKind.MAPPED, "ours, copied": WeightsKind.COPIED}
THEIRS = {"theirs": False, "theirs, repacked": True}

Bursts = dict[str, dict[str, list[Burst]]]  # by who ran and what


def folder_of(name: str, asked: argparse.Namespace) -> Path:
    """A crumb directory of a type's file or of a format of ours, made unless it is there."""
    folder: Path = asked.folder / name.lower()
    if folder.exists():
        return folder
    if name in TYPES:
        export(ExportRequest(str(file_of(name, asked)), folder, Container.CRUMB, strict=True))
    else:
        write_quantized(folder, BILLION, parse_format(name))
    return folder


def file_of(type_name: str, asked: argparse.Namespace) -> Path:
    gguf: Path = asked.folder / f"{type_name}.gguf"
    if not gguf.exists():
        write_gguf(asked.peer_python, gguf, type_name)
    return gguf


def alternate(runners: dict[str, OurEngine | Peer], asked: argparse.Namespace) -> dict[str, Any]:
    """All bursts of all runners; each begins with one that is not timed."""
    bursts: Bursts = {who: defaultdict(list) for who in runners}
    for number in range(asked.rounds + 1):
        for kind in KINDS:
            for who, runner in runners.items():
                prompt = kind == "prefill"
                burst = runner.prefill(asked.prompt) if prompt else runner.decode(asked.tokens)
                if number:
                    bursts[who][kind].append(burst)
    return {
        who: {kind: [asdict(burst) for burst in runs] for kind, runs in kinds.items()}
        for who, kinds in bursts.items()
    }


def measure_peer(type_name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One type: ours by this process's instruction set, and theirs in both ways."""
    with ExitStack() as stack:
        folder = folder_of(type_name, asked)
        runners: dict[str, OurEngine | Peer] = {
            who: OurEngine(folder, asked.threads, weights) for who, weights in OURS.items()
        }
        for who, repacked in THEIRS.items():
            gguf = file_of(type_name, asked)
            peer = Peer(asked.peer_python, gguf, asked.threads, repacked)
            runners[who] = stack.enter_context(peer)
        return alternate(runners, asked)


def measure_ours(asked: argparse.Namespace) -> dict[str, Any]:
    """All types and what they are held against, by this process's instruction set."""
    names = [*asked.types, *sorted({TYPES[name] for name in asked.types})]
    engines: dict[str, OurEngine | Peer] = {
        name: OurEngine(folder_of(name, asked), asked.threads, WeightsKind.MAPPED) for name in names
    }
    return alternate(engines, asked)


def best(bursts: list[dict[str, Any]]) -> float:
    """Tokens per second of the fastest burst."""
    return max(Burst(**burst).tokens_per_second for burst in bursts)


def peer_row(type_name: str, found: dict[str, Any]) -> list[str]:
    cells = [type_name]
    for kind in KINDS:
        speeds = {who: best(found[who][kind]) for who in found}
        ratio = max(speeds[who] for who in OURS) / max(speeds[who] for who in THEIRS)
        cells += [f"{speed:.1f}" for speed in speeds.values()] + [f"{ratio:.2f}"]
    return cells


def our_row(type_name: str, found: dict[str, Any]) -> list[str]:
    cells = [type_name, TYPES[type_name]]
    for kind in KINDS:
        ours, against = best(found[type_name][kind]), best(found[TYPES[type_name]][kind])
        cells += [f"{ours:.1f}", f"{against:.1f}", f"{ours / against:.2f}"]
    return cells


def print_measured(record: dict[str, Any]) -> None:
    """Both tables."""
    kinds = (f"prompt of {record['prompt']}", "decode")
    if record["peer"]:
        print(f"\n{record['peer_set']}, tokens per second, ours beside ik_llama.cpp\n")
        columns = [f"{kind}, {who}" for kind in kinds for who in (*OURS, *THEIRS, "ratio")]
        rows = [peer_row(*item) for item in record["peer"].items()]
        print_table(["type", *columns], rows)
    for isa, found in record["ours"].items():
        print(f"\n{isa}, tokens per second, types beside our formats\n")
        columns = [f"{kind}, {what}" for kind in kinds for what in ("type", "format", "ratio")]
        rows = [our_row(name, found) for name in TYPES if name in found]
        print_table(["type", "beside", *columns], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="keeps models, about 9 GB")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--peer-set", default="avx2", help="of CRUMB_ISA, beside theirs")
    parser.add_argument("--sets", nargs="*", default=["avx512"], help="beside our formats")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=24, help="decoded in a burst")
    parser.add_argument("--without-peer", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed_gguf.json")
    parser.add_argument("--alone", choices=("peer", "ours"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone:
        runs = measure_peer(asked.types[0], asked) if asked.alone == "peer" else measure_ours(asked)
        print(json.dumps(runs))
        return
    asked.folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"machine": describe_machine(), "peer": {}, "ours": {}}
    record |= {name: getattr(asked, name) for name in ("threads", "prompt", "tokens", "peer_set")}
    print(one_line(record["machine"]))
    words: list[object] = ["--folder", asked.folder, "--peer-python", asked.peer_python]
    for option in ("threads", "rounds", "prompt", "tokens"):
        words += [f"--{option}", getattr(asked, option)]
    for name in [] if asked.without_peer else asked.types:
        alone = ("peer", *words, "--types", name)
        record["peer"][name] = measure_alone(__file__, *alone, CRUMB_ISA=asked.peer_set)
        write_record(asked.out, record)
    for isa in asked.sets:
        alone = ("ours", *words, "--types", *asked.types)
        record["ours"][isa] = measure_alone(__file__, *alone, CRUMB_ISA=isa)
        write_record(asked.out, record)
    print_measured(record)


if __name__ == "__main__":
    main()
