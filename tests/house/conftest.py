"""What the house checks share: the project's root and its own files.

In: the working tree. Out: paths relative to the root, as git tracks them or would track them.
Without git (an unpacked archive) every file outside build and cache folders counts.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = ("build", "dist", "scratch", "__pycache__")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def project_files() -> list[Path]:
    """Every file of the project, relative to the root, in name order."""
    names = _files_of_git() if (ROOT / ".git").exists() else _files_of_folder()
    files = [name for name in names if (ROOT / name).is_file()]
    assert Path("pyproject.toml") in files, "the list of files does not show the project"
    return sorted(files)


def _files_of_git() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in listed.split("\0") if name]


def _files_of_folder() -> list[Path]:
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
    return [path for path in found if not any(_is_not_ours(part) for part in path.parts)]


def _is_not_ours(part: str) -> bool:
    hidden = part.startswith(".") and part not in (".ci", ".gitignore")
    return hidden or part in NOT_OURS or part.endswith((".so", ".egg-info"))
