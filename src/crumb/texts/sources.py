"""A name -> a Text: an embedded excerpt, a data set of the hub, a file, or a directory of files.

In: a name and what it is read for. Out: a Text with its name and hash.
A name of the two tables always means that text; `./wikitext2` is the way to a file or directory
that happens to have such a name. Refuses texts that are empty, missing or not UTF-8.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from importlib import resources
from pathlib import Path

from crumb.errors import TextError
from crumb.texts.hub_texts import HUB_TEXTS, Use, read_hub_text

EXCERPTS = {
    "excerpt-calibration": "excerpt-calibration.txt",
    "excerpt-evaluation": "excerpt-evaluation.txt",
}
"""The first articles of WikiText-2's test split, cut in two."""

DOMAINS = {
    f"embedded-{domain}": f"calibration/{domain}.txt"
    for domain in (
        "encyclopedia",
        "novels",
        "news",
        "code",
        "mathematics",
        "languages",
        "dialogue",
    )
}
"""What `embedded` draws from; embedded/texts/LICENSE.md says where each comes from."""

EMBEDDED = EXCERPTS | DOMAINS
"""Texts inside the package."""

PROSE = {".txt", ".md", ".rst", ".tex", ".html"}
CODE = {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".rs", ".go", ".java", ".js", ".ts"}
SETTINGS = {".sh", ".sql", ".css", ".toml", ".yaml", ".yml", ".json"}
SUFFIXES = PROSE | CODE | SETTINGS
"""Files of a directory that count as text."""

SEPARATOR = "\n\n"
"""Between the files of a directory."""


@dataclass(frozen=True)
class Text:
    """A text as a protocol tokenizes it: one stream."""

    name: str  # as the user gave it
    text: str
    tokens_kept: int | None = None  # the protocol of its data set keeps only the first ones

    @cached_property
    def sha256(self) -> str:
        """Of the text in UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_text(name: str, use: Use) -> Text:
    """The text of that name. Raises: TextError."""
    most_tokens = None
    if name in EMBEDDED:
        text = (
            resources.files("crumb")
            .joinpath("embedded", "texts", EMBEDDED[name])
            .read_text(encoding="utf-8")
        )
    elif name in HUB_TEXTS:
        text, most_tokens = read_hub_text(name, use), HUB_TEXTS[name].tokens.get(use)
    else:
        text = _read_path(name)
    if not text or text.isspace():
        raise TextError("this text is empty", where=name)
    return Text(name, text, most_tokens)


def is_known(name: str) -> bool:
    """Whether the name is in a table, so that no file can stand for it."""
    return name in EMBEDDED or name in HUB_TEXTS


def path_exists(name: str) -> bool:
    """Whether the name is a path that is there; False for names that no path can have."""
    try:
        return bool(name) and Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _read_path(name: str) -> str:
    if not path_exists(name):
        names = [*EMBEDDED, *HUB_TEXTS]
        near = get_close_matches(name, names, 1)
        raise TextError(
            "no such text",
            where=repr(name[:200]),
            expected=f"{', '.join(names)}, or the path of a text file or directory",
            do=f"Did you mean {near[0]}?" if near else None,
        )
    path = Path(name).expanduser()
    if not path.is_dir():
        return _read_file(path)
    files = _text_files(path)
    if not files:
        raise TextError(
            "no text files in this directory", where=path, expected=" ".join(sorted(SUFFIXES))
        )
    return SEPARATOR.join(_read_file(file) for file in files)


def _text_files(directory: Path) -> list[Path]:
    """Text files below a directory, sorted by path; hidden ones and linked directories left out."""
    paths: list[Path] = []

    def refuse(error: OSError) -> None:
        raise TextError(
            f"this directory cannot be read: {error.strerror}", where=error.filename
        ) from error

    for parent, directories, files in os.walk(directory, onerror=refuse):
        directories[:] = [name for name in directories if not name.startswith(".")]
        paths += [
            Path(parent, name)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    return sorted(paths, key=lambda path: path.relative_to(directory).parts)


def _read_file(path: Path) -> str:
    """A file's text exactly as it lies: no newline is changed."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            "this file is not UTF-8 text",
            where=path,
            found=f"byte 0x{error.object[error.start]:02x} at offset {error.start}",
            do="Convert it to UTF-8, or leave it out",
        ) from error
    except OSError as error:
        raise TextError(f"this file cannot be read: {error.strerror}", where=path) from error
