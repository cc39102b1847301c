"""The memory that a dry run plans, beside the peak of a run that fills the context.

In: models (directories or GGUF files), a context in tokens. Out: JSON with the machine, a Markdown
table: planned and measured bytes and their difference, each model in processes of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from alone import measure_alone
from machine import describe_machine
from report import RESULTS, print_table, write_record

DECODED_TOKENS = 16


def planned(model: str, context: int) -> dict[str, Any]:
    """What `crumb generate --dry-run` says."""
    line = ["-m", "crumb", "generate", model, "--context", str(context), "--dry-run", "--json"]
    done = subprocess.run([sys.executable, *line], check=True, stdout=subprocess.PIPE, text=True)
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def peak(model: str, context: int) -> dict[str, int]:
    """The peak of this process, which has loaded what the command loads, with a full context."""
    import crumb.cli.main  # noqa: F401
    from crumb import load
    from crumb.machine.memory import peak_memory_bytes

    with load(model, context_tokens=context) as loaded:
        token = loaded.tokenizer.encode("sea")[-1]
        prompt = [token] * (context - DECODED_TOKENS)
        loaded.generate(prompt, max_tokens=DECODED_TOKENS, ignore_end=True)
        return {"peak_bytes": peak_memory_bytes()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=RESULTS / "memory_plan.json")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone:
        print(json.dumps(peak(asked.models[0], asked.context)))
        return
    records = []
    for model in asked.models:
        plan = planned(model, asked.context)
        measured = measure_alone(__file__, model, "--context", asked.context)
        records.append({"model": Path(model).name, **plan, **measured})
    write_record(asked.out, {"machine": describe_machine(), "models": records})
    print_table(
        ["model", "context", "planned, MB", "peak, MB", "planned over peak"],
        [
            [
                record["model"],
                str(record["context_tokens"]),
                f"{record['total_bytes'] / 1e6:.1f}",
                f"{record['peak_bytes'] / 1e6:.1f}",
                f"{record['total_bytes'] / record['peak_bytes']:.3f}",
            ]
            for record in records
        ],
    )


if __name__ == "__main__":
    main()
