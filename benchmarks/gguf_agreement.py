"""Whether llama.cpp and crumb compute the same from the same GGUF files.

In: GGUF files, a text, the Python of an environment with llama.cpp. Out: JSON with the machine, a
Markdown table: perplexity by both, protocol llama.cpp, and the mean and the root mean square of
what a token's log-probability differs by. Crumb runs exactly; llama.cpp rounds activations to int8
for most types and keeps keys and values in f16, which is what the differences are.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from numpy.typing import NDArray
from report import RESULTS, print_table, write_record

from crumb.evaluation.execution import Execution
from crumb.evaluation.scores import score
from crumb.run.model import open_model
from crumb.texts.hub_texts import Use
from crumb.texts.sources import read_text
from crumb.texts.windows import Windows, cut_windows

PEER = Path(__file__).with_name("llama_cpp_logprobs.py")


def their_logprobs(model: Path, windows: Windows, python: Path) -> NDArray[np.float64]:
    """What llama.cpp gives each scored token."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "windows.npy", Path(folder) / "logprobs.npy"
        np.save(given, windows.tokens)
        command = [python, PEER, "--model", model, "--windows", given, "--out", made]
        command += ["--first-scored", windows.first_scored]
        done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{model}: {done.stderr[-2000:]}")
        found: NDArray[np.float64] = np.load(made)
    return found


def compare(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One file through both."""
    model = open_model(str(path))
    windows = cut_windows(
        read_text(arguments.text, Use.EVALUATION),
        model.tokenizer.encode,
        protocol="llama.cpp",
        limit=arguments.limit,
        begin_token=model.tokenizer.begin_token,
    )
    (scores,) = score(
        [model], windows.tokens, windows.first_scored, False, lambda done, total: None, Execution()
    )
    ours, theirs = -scores.loss, their_logprobs(path, windows, arguments.llama_python)
    moved = theirs - ours
    return {
        "file": path.name,
        "windows": len(windows.tokens),
        "scored_tokens": windows.scored_tokens,
        "perplexity_crumb": float(np.exp(-ours.mean())),
        "perplexity_llama_cpp": float(np.exp(-theirs.mean())),
        "mean_difference": float(moved.mean()),
        "standard_error": float(moved.std() / np.sqrt(moved.size)),
        "rms_difference": float(np.sqrt(np.square(moved).mean())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--text", required=True)
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--llama-python", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS / "gguf_agreement.json")
    arguments = parser.parse_args()
    rows = [compare(path, arguments) for path in arguments.files]
    text = Path(arguments.text).name
    record = {"machine": describe_machine(), "text": text, "limit": arguments.limit, "rows": rows}
    write_record(arguments.out, record)
    print_table(
        ["file", "perplexity, crumb", "llama.cpp", "ratio", "mean difference", "rms difference"],
        [
            [
                row["file"],
                f"{row['perplexity_crumb']:.4f}",
                f"{row['perplexity_llama_cpp']:.4f}",
                f"{row['perplexity_llama_cpp'] / row['perplexity_crumb']:.5f}",
                f"{row['mean_difference']:.5f} ± {row['standard_error']:.5f}",
                f"{row['rms_difference']:.5f}",
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
