"""Quality inside GGUF's own types: our files against llama.cpp's with its importance matrix.

In: a float model, a calibration text, texts, types, the Python of an environment with llama.cpp.
Out: JSON with the machine and settings, a Markdown table on stdout. Every matrix of a file has the
same type; embedding and head too, unless --embedding gives them another. Both quantizers see the
same calibration tokens: llama.cpp as the mean of squares of each input of the float model, which is
what its importance matrix is. All files are read and evaluated by crumb, protocol llama.cpp, paired
with the float model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine
from numpy.typing import NDArray
from text_windows import windows_of

from crumb.calibrate.drawing import draw
from crumb.calibrate.walk import walk_model
from crumb.checkpoints.gguf.model import gguf_model_of
from crumb.evaluation.comparison import evaluate_models
from crumb.evaluation.report import Evaluation
from crumb.exporting import Container, ExportRequest, export
from crumb.pipeline import Calibration, QuantizeRequest, quantize
from crumb.run.model import Model, open_model

PEER = Path(__file__).with_name("llama_cpp_quantize.py")


def importance_matrix(model: Model, calibration: Calibration) -> dict[str, NDArray[np.float32]]:
    """Mean of squares of each linear layer's input in the float model, by GGUF tensor name."""
    drawn = draw(model, calibration)
    target = gguf_model_of(model.checkpoint.configuration)
    theirs = {each.ours: each.theirs for each in target.names()}
    found: dict[str, NDArray[np.float32]] = {}
    for walk, group in walk_model(model.checkpoint, drawn.tokens):
        squares = walk.statistics(group).hessian.diagonal().astype(np.float32)
        for linear in group.linears:
            found[theirs[linear.weight]] = squares
    return {name: squares for name, squares in found.items() if name.startswith("blk.")}


def peer_files(model: Model, arguments: argparse.Namespace) -> dict[str, Path]:
    """llama.cpp's files by type."""
    source = arguments.scratch / "float.gguf"
    if not source.exists():
        export(ExportRequest(arguments.model, source, Container.GGUF))
    importance = arguments.scratch / "importance.npz"
    np.savez(importance, **importance_matrix(model, calibration_of(arguments)))
    folder = arguments.scratch / "llama.cpp"
    command = [arguments.llama_python, PEER, "--source", source, "--out", folder]
    command += ["--importance", importance, "--types", *arguments.types]
    command += ["--embedding", arguments.embedding] if arguments.embedding else []
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return {name: folder / f"{name}.gguf" for name in arguments.types}


def our_file(type_name: str, arguments: argparse.Namespace) -> Path:
    """Our file of one type: quantized for it, then exported, which must be exact."""
    lower = type_name.lower()
    outer = (arguments.embedding or type_name).lower()
    folder, out = arguments.scratch / f"crumb-{lower}", arguments.scratch / f"crumb-{lower}.gguf"
    if not out.exists():
        quantize(
            QuantizeRequest(
                model=arguments.model,
                out=folder,
                target=f"gguf:{lower}",
                embedding=outer,
                head=outer,
                calibration=calibration_of(arguments),
            )
        )
        export(ExportRequest(str(folder), out, Container.GGUF, strict=True))
    return out


def calibration_of(arguments: argparse.Namespace) -> Calibration:
    return Calibration(arguments.calibration, arguments.sequences, arguments.length, arguments.seed)


def measure(
    models: list[Model], reference: Model, text: str, limit: int | None
) -> list[Evaluation]:
    """All models on one text; the reference's own figures come first."""
    return evaluate_models(models, reference, windows_of(reference, text, limit))


def print_markdown(rows: list[dict[str, Any]], texts: list[str]) -> None:
    """A line for each type: KL of both and their ratio on each text."""
    columns = ["type", "bits per weight"]
    for text in texts:
        columns += [f"{text} llama.cpp", "crumb", "ratio"]
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        cells = [row["type"], f"{row['bits_per_weight']:.3f}"]
        for text in texts:
            theirs, ours = (row["texts"][text][who] for who in ("llama.cpp", "crumb"))
            pair = [each["divergence"]["kl"] for each in (theirs, ours)]
            cells += [f"{kl['value']:.5f} ± {kl['standard_error']:.5f}" for kl in pair]
            cells.append(f"{pair[1]['value'] / pair[0]['value']:.3f}")
        print("| " + " | ".join(cells) + " |")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--types", nargs="+", default=["Q2_K", "Q3_K", "Q4_K", "Q4_0"])
    parser.add_argument("--embedding", help="type of embedding and head; default: the file's")
    parser.add_argument("--llama-python", type=Path, required=True)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--scratch", type=Path, default=Path("scratch/quality-gguf"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quality_gguf.json"))
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    reference = open_model(arguments.model)
    pairs = {
        name: {"llama.cpp": path, "crumb": our_file(name, arguments)}
        for name, path in peer_files(reference, arguments).items()
    }
    files = [(name, who, path) for name, pair in pairs.items() for who, path in pair.items()]
    models = [open_model(str(path)) for _, _, path in files]
    rows: dict[str, dict[str, Any]] = {}
    texts = [Path(text).name for text in arguments.text]
    for text, path in zip(texts, arguments.text, strict=True):
        for (name, who, file), found in zip(
            files, measure(models, reference, path, arguments.limit)[1:], strict=True
        ):
            row, found_name = rows.setdefault(name, {"type": name, "texts": {}}), file.name
            row["bits_per_weight"] = found.bits_per_weight
            named = {"model": found_name, "reference": Path(arguments.model).name, "text": text}
            row["texts"].setdefault(text, {})[who] = found.as_dict() | named
    settings = {
        key: getattr(arguments, key)
        for key in ("sequences", "length", "seed", "limit", "types", "embedding")
    }
    settings |= {"model": Path(arguments.model).name, "calibrate": Path(arguments.calibration).name}
    record = {
        "machine": describe_machine(),
        "settings": settings,
        "rows": list(rows.values()),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print_markdown(list(rows.values()), texts)
    shutil.rmtree(arguments.scratch)


if __name__ == "__main__":
    main()
