"""The data sets of the papers: where each lies on the Hugging Face hub and how its rows are joined.

In: a name and a use. Out: the joined text. Files come from the hub's cache (HF_HOME, HF_TOKEN and
HF_HUB_OFFLINE apply) and are downloaded when missing; parquet files need pyarrow.
Refuses files that are truncated, malformed or hold no such column.
Source: the data loaders of IST-DASLab/gptq ("wikitext2", "ptb-new", "c4-new").
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import Path

from crumb.errors import TextError


class Use(StrEnum):
    """What a text is read for: it decides the split of a data set."""

    CALIBRATION = "calibration"
    EVALUATION = "evaluation"


@dataclass(frozen=True)
class HubText:
    """One data set. A limit that is missing means all of it."""

    repository: str
    revision: str | None  # None: the main branch
    files: Mapping[Use, str]
    column: str
    separator: str
    documents: Mapping[Use, int] = field(default_factory=dict)  # rows read, from the first
    tokens: Mapping[Use, int] = field(default_factory=dict)  # tokens kept, from the first


HUB_TEXTS = {
    "wikitext2": HubText(
        repository="Salesforce/wikitext",
        revision=None,
        files={
            Use.CALIBRATION: "wikitext-2-raw-v1/train-00000-of-00001.parquet",
            Use.EVALUATION: "wikitext-2-raw-v1/test-00000-of-00001.parquet",
        },
        column="text",
        separator="\n\n",
    ),
    "ptb": HubText(
        repository="ptb-text-only/ptb_text_only",
        revision="refs/convert/parquet",  # the main branch holds a script, not data
        files={
            Use.CALIBRATION: "penn_treebank/train/0000.parquet",
            Use.EVALUATION: "penn_treebank/test/0000.parquet",
        },
        column="sentence",
        separator=" ",
    ),
    # The papers draw calibration sequences inside single long documents; here they are drawn from
    # a stream of documents like every other text, about 2 million tokens of it.
    "c4": HubText(
        repository="allenai/c4",
        revision=None,
        files={
            Use.CALIBRATION: "en/c4-train.00000-of-01024.json.gz",
            Use.EVALUATION: "en/c4-validation.00000-of-00008.json.gz",
        },
        column="text",
        separator=" ",
        documents={Use.CALIBRATION: 4096, Use.EVALUATION: 1100},
        tokens={Use.EVALUATION: 256 * 2048},
    ),
}
"""One row per data set."""


def read_hub_text(name: str, use: Use) -> str:
    """The joined rows of a data set in HUB_TEXTS. Raises: TextError."""
    row = HUB_TEXTS[name]
    path = _fetch(name, row, row.files[use])
    read = READERS["".join(path.suffixes[-1:])]
    return row.separator.join(read(path, row.column, row.documents.get(use)))


def _fetch(name: str, row: HubText, file: str) -> Path:
    """A file of a data set in the hub's cache, downloaded if it is not there yet."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(row.repository, file, repo_type="dataset", revision=row.revision)
        )
    except Exception as error:  # the hub's library lets errors of its HTTP client through
        raise TextError(
            "this data set is not in the hub's cache and could not be downloaded",
            where=f"{name} ({row.repository}, {file})",
            found=f"{type(error).__name__}: {str(error)[:200]}",
            do="Check the network, HF_HUB_OFFLINE and HF_HOME, or give a local text file",
        ) from error


def _read_parquet(path: Path, column: str, documents: int | None) -> list[str]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise TextError(
            "this data set is stored as parquet, which needs pyarrow",
            where=path.name,
            do="Install it with `pip install 'crumb-llm[parquet]'`, or give a local text file",
        ) from error
    try:
        with ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise TextError(
                    "the parquet file has no such column",
                    where=path,
                    expected=column,
                    found=", ".join(file.schema_arrow.names)[:200],
                )
            rows: list[str] = file.read(columns=[column]).column(column).to_pylist()[:documents]
    except (ArrowException, OSError, ValueError) as error:
        raise TextError(f"cannot be read as parquet: {error}", where=path, do=AGAIN) from error
    if not all(isinstance(text, str) for text in rows):
        raise TextError("a row of the parquet file is not text", where=path, expected=column)
    return rows


def _read_json_lines(path: Path, column: str, documents: int | None) -> list[str]:
    """The column of each line of a gzip file of JSON objects; only the lines asked for are read."""
    texts: list[str] = []
    try:
        with gzip.open(path, "rb") as lines:
            for line in islice(lines, documents):
                text = json.loads(line)[column]
                if not isinstance(text, str):
                    raise TypeError(f"its {column} is not text")
                texts.append(text)
    except (OSError, EOFError, zlib.error) as error:
        raise TextError(f"cannot be read as gzip: {error}", where=path, do=AGAIN) from error
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise TextError(
            f"not a JSON object with text: {type(error).__name__} {error}",
            where=f"{path}, line {len(texts) + 1}",
            expected=f'{{"{column}": "..."}}',
            do=AGAIN,
        ) from error
    return texts


AGAIN = "Delete it from the cache and download it again"

READERS: dict[str, Callable[[Path, str, int | None], list[str]]] = {
    ".parquet": _read_parquet,
    ".gz": _read_json_lines,
}
"""One row per kind of file on the hub."""
