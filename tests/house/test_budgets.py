"""The budgets: how many lines a file and a function may have, as budgets.toml says.

In: every Python and C++ source. Out: the names of those that are longer, with their lines.
A C++ function is a block that opens after a parenthesis at the left margin and closes there.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PYTHON = (".py", ".pyi")
NATIVE = (".cpp", ".hpp", ".inl")
LARGEST_EXCEPTION_LINES = 600


@dataclass(frozen=True)
class Length:
    """A file, or a function of it, and its lines."""

    path: str
    function: str | None
    lines: int
    is_family: bool = False


def python_lengths(path: str, source: str) -> Iterator[Length]:
    """The file and each of its functions, nested ones and methods too."""
    tree = ast.parse(source)
    targets = [node.targets[0] for node in tree.body if isinstance(node, ast.Assign)]
    is_family = any(isinstance(name, ast.Name) and name.id == "FAMILY" for name in targets)
    yield Length(path, None, len(source.splitlines()), is_family)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield Length(path, node.name, node.end_lineno - node.lineno + 1)


def native_lengths(path: str, source: str) -> Iterator[Length]:
    """The file and each block that starts and ends at the left margin and has a parenthesis."""
    lines = source.splitlines()
    yield Length(path, None, len(lines))
    begin, head = None, ""
    for number, line in enumerate(lines):
        if begin is None and line[:1].isalpha() and "(" in line and not line.endswith((";", "}")):
            begin, head = number, line
        elif begin is not None and line.startswith("}"):
            yield Length(path, head.split("(")[0].split()[-1], number - begin + 1)
            begin = None


def too_long(lengths: list[Length], budgets: Mapping[str, Any]) -> list[str]:
    """One line for each length over its budget, and for each exception nothing needs."""
    exceptions = {
        (entry["path"], entry.get("function")): entry for entry in budgets.get("exception", [])
    }
    complaints, used = [], set()
    for length in lengths:
        room = length.path.split("/")[0]
        limit = budgets["function_lines" if length.function else "file_lines"][room]
        if length.is_family:
            limit = budgets["family"]["file_lines"]
        key = (length.path, length.function)
        if length.lines > limit and key in exceptions:
            used.add(key)
            limit = exceptions[key]["lines"]
        if length.lines > limit:
            what = length.path + (f": {length.function}" if length.function else "")
            complaints.append(f"{what} has {length.lines} lines, the budget is {limit}")
    unused = [key for key in exceptions if key not in used]
    return complaints + [f"budgets.toml: nothing needs the exception {key}" for key in unused]


@pytest.fixture(scope="module")
def budgets(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "budgets.toml").read_text())


def test_no_file_or_function_is_longer_than_its_budget(
    root: Path, project_files: list[Path], budgets: dict[str, Any]
) -> None:
    lengths: list[Length] = []
    for path in project_files:
        if path.parts[0] in budgets["file_lines"] and path.suffix in PYTHON + NATIVE:
            measure = python_lengths if path.suffix in PYTHON else native_lengths
            lengths += measure(path.as_posix(), (root / path).read_text())
    complaints = too_long(lengths, budgets)
    assert not complaints, "\n".join(complaints)


def test_every_exception_gives_a_reason_and_stays_below_the_ceiling(
    budgets: dict[str, Any],
) -> None:
    for entry in budgets.get("exception", []):
        assert len(entry["reason"].split()) >= 4, entry
        assert entry["lines"] <= LARGEST_EXCEPTION_LINES, entry


LIMITS = {
    "file_lines": {"src": 4, "native": 9},
    "function_lines": {"src": 2, "native": 3},
    "family": {"file_lines": 1},
}
LONG_PYTHON = "class A:\n    def work(self):\n        x = 1\n        return x\n"
LONG_NATIVE = "struct S {\n  int f() { return 1; }\n};\nvoid work(\n    int x) {\n  x = 2;\n}\n"


def test_a_long_python_function_is_found_by_name() -> None:
    complaints = too_long(list(python_lengths("src/a.py", LONG_PYTHON)), LIMITS)
    assert complaints == ["src/a.py: work has 3 lines, the budget is 2"]


def test_a_long_native_function_is_found_by_name() -> None:
    complaints = too_long(list(native_lengths("native/a.cpp", LONG_NATIVE)), LIMITS)
    assert complaints == ["native/a.cpp: work has 4 lines, the budget is 3"]


def test_a_family_file_has_the_smaller_budget() -> None:
    source = '"""x"""\nFAMILY = 1\n'
    complaints = too_long(list(python_lengths("src/a.py", source)), LIMITS)
    assert complaints == ["src/a.py has 2 lines, the budget is 1"]


def test_an_exception_excuses_one_function_and_an_unused_one_is_reported() -> None:
    needed = {"path": "src/a.py", "function": "work", "lines": 3}
    lengths = list(python_lengths("src/a.py", LONG_PYTHON))
    assert too_long(lengths, LIMITS | {"exception": [needed]}) == []
    unused = {"path": "src/a.py", "function": "rest", "lines": 3}
    complaints = too_long(lengths, LIMITS | {"exception": [needed, unused]})
    assert complaints == ["budgets.toml: nothing needs the exception ('src/a.py', 'rest')"]
