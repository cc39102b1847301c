"""llama.cpp's own quantizer as a peer: one float GGUF file to one of each type asked for.

In: a float GGUF file, types, an importance matrix as .npz (GGUF tensor name -> mean of squares of
each input). Out: <out>/<TYPE>.gguf, every matrix of the file in that type; embedding and head too,
unless another type is given for them.
Needs the llama-cpp-python package and nothing of crumb; run it with that environment's Python.
"""

from __future__ import annotations

import argparse
import ctypes
from pathlib import Path

import llama_cpp
import numpy as np

FILE_TYPES = {
    "Q4_0": "MOSTLY_Q4_0",
    "Q4_1": "MOSTLY_Q4_1",
    "Q5_0": "MOSTLY_Q5_0",
    "Q5_1": "MOSTLY_Q5_1",
    "Q8_0": "MOSTLY_Q8_0",
    "Q2_K": "MOSTLY_Q2_K",
    "Q3_K": "MOSTLY_Q3_K_M",
    "Q4_K": "MOSTLY_Q4_K_M",
    "Q5_K": "MOSTLY_Q5_K_M",
    "Q6_K": "MOSTLY_Q6_K",
    "IQ4_NL": "MOSTLY_IQ4_NL",
    "IQ4_XS": "MOSTLY_IQ4_XS",
    "MXFP4": "MOSTLY_MXFP4_MOE",
    "Q2_0": "MOSTLY_Q2_0",
}
"""Type of all tensors -> the llama_ftype whose pure form it is. MXFP4 needs every tensor named."""

TYPE_NUMBERS = {
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "IQ4_NL": 20,
    "IQ4_XS": 23,
    "MXFP4": 39,
    "Q2_0": 42,
}


def importance_entries(path: Path | None) -> ctypes.Array | None:
    """The importance matrix as llama.cpp takes it: entries and a last one without a name."""
    if path is None:
        return None
    stored = np.load(path)
    entries = (llama_cpp.llama_model_imatrix_data * (len(stored.files) + 1))()
    entries.kept = []  # the arrays must outlive the call
    for entry, name in zip(entries, stored.files, strict=False):
        values = np.ascontiguousarray(stored[name], np.float32)
        entries.kept.append(values)
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries


def quantize(
    source: Path, out: Path, type_name: str, outer: str, entries: ctypes.Array | None
) -> None:
    """Write one file, embedding and head in `outer`. Exits where llama.cpp refuses."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{FILE_TYPES[type_name]}")
    settings.pure = True
    settings.output_tensor_type = settings.token_embedding_type = TYPE_NUMBERS[outer]
    if entries is not None:
        settings.imatrix = ctypes.cast(entries, type(settings.imatrix))
    status = llama_cpp.llama_model_quantize(
        str(source).encode(), str(out).encode(), ctypes.byref(settings)
    )
    if status:
        out.unlink(missing_ok=True)
        raise SystemExit(f"llama.cpp does not write {type_name}: status {status}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--importance", type=Path)
    parser.add_argument("--types", nargs="+", choices=FILE_TYPES, required=True)
    parser.add_argument("--embedding", choices=TYPE_NUMBERS, help="default: the file's type")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    entries = importance_entries(arguments.importance)
    for type_name in arguments.types:
        out, outer = arguments.out / f"{type_name}.gguf", arguments.embedding or type_name
        quantize(arguments.source, out, type_name, outer, entries)


if __name__ == "__main__":
    main()
