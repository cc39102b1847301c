"""What is asked of an export. In: a model, a container, types. Out: one record.

ExportOptions are its fields as keywords. Refuses containers that do not exist, types that the
container does not have, and a GGUF file that would not be known as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypedDict, Unpack

import ml_dtypes
import numpy as np

from crumb.errors import UsageError
from crumb.requests.keywords import check_known

FLOAT_TYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class Container(StrEnum):
    """What can be written."""

    CRUMB = "crumb"
    GGUF = "gguf"
    GPTQ = "gptq"
    GPTQ_V2 = "gptq_v2"
    COMPRESSED_TENSORS = "compressed-tensors"
    SAFETENSORS = "safetensors"

    @classmethod
    def _missing_(cls, value: object) -> Container:
        raise UsageError(
            "no such container", expected=f"one of {', '.join(cls)}", found=repr(value)[:40]
        )


@dataclass(frozen=True)
class ExportRequest:
    """What to write, and where."""

    model: str
    out: Path
    to: Container
    type: str | None = None  # gguf only: of every matrix; None: the nearest to what each is
    float_type: str | None = None  # what decoded matrices are stored as; None: float16
    strict: bool = False  # a tensor that has to be changed is an error

    def __post_init__(self) -> None:
        if self.to is not Container.SAFETENSORS and self.float_type is not None:
            raise UsageError(
                "only safetensors has float types to choose", found=f"--float-type with {self.to}"
            )
        if self.float_type not in (None, *FLOAT_TYPES):
            raise UsageError(
                "no such float type",
                expected=f"one of {', '.join(FLOAT_TYPES)}",
                found=repr(self.float_type)[:40],
            )
        if self.type is not None and self.to is not Container.GGUF:
            raise UsageError("only gguf has types to choose", found=f"--type with {self.to}")
        if self.to is Container.GGUF and self.out.suffix.lower() != f".{Container.GGUF}":
            raise UsageError(
                "the output would not be known as a GGUF file",
                where=self.out,
                expected=f"a name that ends in .{Container.GGUF}",
                do="Choose another --out",
            )


class ExportOptions(TypedDict, total=False):
    """The fields of ExportRequest as keywords, but for model, output and container."""

    type: str | None
    float_type: str | None
    strict: bool


def make_export_request(
    model: str | Path, out: str | Path, to: Container | str, **options: Unpack[ExportOptions]
) -> ExportRequest:
    """A request from keywords. Raises: UsageError."""
    check_known(options, "an export", ExportRequest)
    return ExportRequest(str(model), Path(out), Container(to), **options)
