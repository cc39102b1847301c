"""The documentation tells the truth: its paths exist and its generated pages are current.

In: README.md, CONTRIBUTING.md and docs/*.md. Out: what names a path that is not there.
Also: no project file carries a path of the machine it was written on.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

BACKTICKS = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s#]+)[^)\s]*\)")
PATH = re.compile(r"[\w.-]+(/[\w.-]+)*/?")
OURS = (".py", ".pyi", ".cpp", ".hpp", ".inl", ".toml", ".md")
STARTS = ("", "src/crumb", "docs")
"""Where a path named in a page may begin."""

MACHINE_PATH = re.compile(r"(?<![\w.*~)}>-])/(?:root|home|Users|work|workspace|mnt)\b")


def looks_like_a_path(text: str, tops: set[str]) -> bool:
    """A name with our suffix, or one whose first folder is one of ours; no hub names."""
    if not PATH.fullmatch(text):
        return False
    return Path(text).suffix in OURS or ("/" in text and text.split("/")[0] in tops)


def dangling(page: str, files: list[Path], folder: Path) -> list[str]:
    """The paths that a page names, in backticks or links, and that are not there."""
    known = {path.as_posix() for path in files}
    known |= {parent.as_posix() for path in files for parent in path.parents}
    tops = {
        path.relative_to(start).parts[0]
        for path in map(Path, known)
        for start in STARTS[:2]
        if path.is_relative_to(start) and path != Path(start)
    }
    names = {path.name for path in files}
    quoted = [text for text in BACKTICKS.findall(page) if looks_like_a_path(text, tops)]
    missing = [
        text
        for text in quoted
        if text not in names and not any(Path(start, text).as_posix() in known for start in STARTS)
    ]
    links = [link for link in LINK.findall(page) if "://" not in link]
    return missing + [link for link in links if _resolve(folder, link) not in known]


def _resolve(folder: Path, link: str) -> str:
    """A link's target relative to the root."""
    parts: list[str] = []
    for part in (folder / link).parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return "/".join(parts)


@pytest.fixture(scope="module")
def generator(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", root / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_path_a_page_names_exists(root: Path, project_files: list[Path]) -> None:
    pages = [
        path
        for path in project_files
        if path.suffix == ".md" and path.parent.as_posix() in (".", "docs")
    ]
    assert Path("docs/layout.md") in pages
    complaints = [
        f"{page}: {name}"
        for page in pages
        for name in dangling((root / page).read_text(), project_files, page.parent)
    ]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("name", ["docs/formats.md", "docs/families.md", "docs/cli.md"])
def test_a_generated_page_is_current(root: Path, generator: ModuleType, name: str) -> None:
    page = root / name
    assert page.exists(), f"{name} is missing: run `make docs`"
    assert page.read_text() == generator.PAGES[name](), f"{name} is out of date: run `make docs`"


def test_every_parameter_of_the_command_line_is_explained(generator: ModuleType) -> None:
    rows = [line for line in generator.cli_page().splitlines() if line.startswith("| `")]
    assert rows
    assert [row for row in rows if row.endswith("|  |")] == []


def test_no_file_names_the_machine_it_was_written_on(root: Path, project_files: list[Path]) -> None:
    here = [str(place) for place in (root, Path.home()) if len(place.parts) > 1]
    complaints = []
    for path in project_files:
        try:
            lines = (root / path).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            if MACHINE_PATH.search(line) or any(place in line for place in here):
                complaints.append(f"{path}:{number}: {line.strip()[:100]}")
    assert not complaints, "\n".join(complaints)


def test_a_path_that_is_not_there_is_found() -> None:
    files = [Path(name) for name in ("src/crumb/run/model.py", "docs/layout.md", "native/a.cpp")]
    page = "`run/model.py` `run/gone.py` `native/` `gone.toml` `org/name` `<family>.py` `model.py`"
    page += " [kept](layout.md) [lost](lost.md) [up](../native/a.cpp) [web](https://x.org/a.md)"
    assert dangling(page, files, Path("docs")) == ["run/gone.py", "gone.toml", "lost.md"]


def test_a_path_of_a_machine_is_found_and_a_web_address_is_not() -> None:
    found = ("see " + "/ho" + "me/ann/x", '"' + "/ro" + "ot/.cache" + '"', "in /" + "work/main")
    assert all(MACHINE_PATH.search(line) for line in found)
    assert not any(MACHINE_PATH.search(line) for line in ("https://a.org/home/", "./work/x"))
