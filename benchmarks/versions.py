"""This version beside an earlier one: prompts and decoding in alternating bursts of two processes.

In: the checkout of the earlier version, installed in a .venv of its own; crumb directories. Out:
tokens per second of both and their ratios, the medians. Each process takes the OurEngine of its
own checkout's benchmarks. Refuses nothing; a checkout that is not installed fails at its start.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

WORKER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from engine_bursts import OurEngine
from crumb.run.memory_plan import WeightsKind
engine = OurEngine(Path(sys.argv[2]), int(sys.argv[3]), WeightsKind.MAPPED)
for line in sys.stdin:
    name, *numbers = json.loads(line)
    burst = getattr(engine, name)(*numbers)
    print(burst.tokens / burst.seconds, flush=True)
"""

BURSTS: dict[str, tuple[str | int, ...]] = {
    "prefill 16": ("prefill", 16),
    "prefill 64": ("prefill", 64),
    "prefill 256": ("prefill", 256),
    "prefill 1024": ("prefill", 1024),
    "decode": ("decode", 16, 1),
    "x2": ("decode", 8, 2),
    "x4": ("decode", 8, 4),
    "x16": ("decode", 8, 16),
}


class Version:
    """An engine of one version, in a process of its own."""

    def __init__(self, checkout: Path, python: Path, folder: Path, threads: int) -> None:
        line = [python, "-c", WORKER, checkout / "benchmarks", folder, str(threads)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(line, stdin=pipe, stdout=pipe, text=True)

    def rate(self, burst: Sequence[str | int]) -> float:
        """Tokens per second of one burst."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(burst), file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("earlier", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    here, python = Path(__file__).parents[1], asked.earlier / ".venv/bin/python"
    print(f"| this / earlier | {' | '.join(BURSTS)} |\n|---|{'---:|' * len(BURSTS)}")
    for folder in asked.folders:
        versions = (
            Version(asked.earlier, python, folder, asked.threads),
            Version(here, Path(sys.executable), folder, asked.threads),
        )
        cells = []
        for burst in BURSTS.values():
            rounds = [[each.rate(burst) for each in versions] for _ in range(asked.rounds + 1)]
            earlier, ours = (median(rates) for rates in zip(*rounds[1:], strict=True))
            cells.append(f"{ours:.0f} / {earlier:.0f} = {ours / earlier:.2f}")
        print(f"| {folder.name} | {' | '.join(cells)} |", flush=True)
        for each in versions:
            each.close()


if __name__ == "__main__":
    main()
