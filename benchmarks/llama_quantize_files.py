"""Files of llama.cpp's own quantizer, or of ik_llama.cpp's, with an importance matrix.

In: a float model, a calibration, the program `llama-quantize`, file types as it calls them.
Out: FOLDER/TYPE.gguf for each; the program chooses the type of each matrix, as its users have it.
The importance matrix comes from the tokens that Crumb calibrates on: the mean square of each input
of the float model. `quality_files.py` measures the files.
Where ik_llama.cpp falls back to its own Q6_0, which Crumb does not read, it is told Q5_1, as
llama.cpp falls back.
"""

from __future__ import annotations

import argparse
import os
import re
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from quality_gguf import importance_matrix

from crumb.exporting import Container, ExportRequest, export
from crumb.requests.quantize_request import Calibration
from crumb.run.model import open_model

TYPES = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_M")


def write_importance(path: Path, squares: dict[str, NDArray[np.float32]]) -> None:
    """The legacy file: of each tensor its name, how many batches were summed, and the sums."""
    with path.open("wb") as file:
        file.write(struct.pack("<i", len(squares)))
        for name, values in squares.items():
            encoded = name.encode()
            file.write(struct.pack("<i", len(encoded)) + encoded)
            file.write(struct.pack("<ii", 1, values.size) + values.astype("<f4").tobytes())


def make_files(asked: argparse.Namespace) -> list[Path]:
    """Every file that is not there yet. Raises: CalledProcessError."""
    asked.folder.mkdir(parents=True, exist_ok=True)
    source, importance = asked.folder / "float.gguf", asked.folder / "importance.dat"
    if not source.exists():
        export(ExportRequest(asked.model, source, Container.GGUF))
    if not importance.exists():
        calibration = Calibration(asked.calibration, asked.sequences, asked.length)
        write_importance(importance, importance_matrix(open_model(asked.model), calibration))
    paths = [asked.folder / f"{name}.gguf" for name in asked.types]
    beside = asked.quantizer.resolve().parents[1]
    libraries = [beside / "lib", *beside.parent.glob("*.libs")]
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, libraries))}
    for path in paths:
        if not path.exists():
            make_file(asked.quantizer, importance, source, path, environment)
    return paths


def make_file(
    quantizer: Path, importance: Path, source: Path, path: Path, environment: Mapping[str, str]
) -> None:
    """One file; a second time where matrices came out as Q6_0. Raises: CalledProcessError."""

    def run(*options: str) -> str:
        command = [quantizer, "--imatrix", importance, *options, source, path, path.stem]
        words = list(map(str, command))
        ran = subprocess.run(
            words, check=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return ran.stdout.decode()

    name, changed = "", list[str]()
    for line in run().splitlines():
        told = re.match(r"\[ *\d+/ *\d+\] +(\S+) - ", line)
        name = told[1] if told else name
        if "converting to q6_0" in line:
            changed.append(f"{re.escape(name)}=q5_1")
    if changed:
        run("--custom-q", ",".join(changed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="the float model")
    parser.add_argument("--quantizer", type=Path, required=True, help="llama-quantize")
    parser.add_argument("--calibration", default=Calibration().spec)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--folder", type=Path, required=True, help="where the files lie")
    for path in make_files(parser.parse_args()):
        print(path)


if __name__ == "__main__":
    main()
