"""Names and openings: no catch-all files, every file and public name says what it is.

In: the names of all files, the sources of src, tests, native, benchmarks and docs. Out: offenders.
A public name is a function or class at the top level of a module that no underscore hides.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

CATCH_ALLS = ("utils", "util", "common", "misc", "helpers", "helper", "base")
CODE_FOLDERS = ("src", "tests", "native", "benchmarks", "docs")
NATIVE = (".cpp", ".hpp", ".inl")


def is_catch_all(path: Path) -> bool:
    """Whether a folder or the file itself is named after nothing in particular."""
    stems = [*path.parts[:-1], path.name.split(".")[0]]
    return any(stem.lower().strip("_").removeprefix("test_") in CATCH_ALLS for stem in stems)


def silent(path: Path, source: str) -> list[str]:
    """One line for a module, public function or public class without a docstring."""
    tree = ast.parse(source)
    nodes = [tree, *(tree.body if path.parts[0] == "src" else [])]
    kinds = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    complaints = []
    for node in nodes:
        name = getattr(node, "name", "the module")
        if isinstance(node, kinds) and not name.startswith("_"):
            docstring = ast.get_docstring(node) or ""
            if not docstring.strip():
                complaints.append(f"{path}: {name} has no docstring")
    return complaints


def test_no_file_or_folder_is_a_catch_all(project_files: list[Path]) -> None:
    assert [path for path in project_files if is_catch_all(path)] == []


def test_every_python_file_and_public_name_says_what_it_is(
    root: Path, project_files: list[Path]
) -> None:
    complaints = [
        complaint
        for path in project_files
        if path.parts[0] in CODE_FOLDERS and path.suffix == ".py"
        for complaint in silent(path, (root / path).read_text())
    ]
    assert not complaints, "\n".join(complaints)


def classes(source: str) -> list[str]:
    """The names of all classes that a source defines."""
    return [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]


def test_no_two_classes_share_a_name(root: Path, project_files: list[Path]) -> None:
    """A reader searches by nouns: one that names two things finds the wrong one."""
    homes: dict[str, list[str]] = {}
    for path in project_files:
        if path.parts[:2] == ("src", "crumb") and path.suffix == ".py":
            for name in classes((root / path).read_text()):
                homes.setdefault(name, []).append(str(path))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_every_native_file_opens_with_a_comment(root: Path, project_files: list[Path]) -> None:
    native = [path for path in project_files if path.suffix in NATIVE]
    assert native
    assert [path for path in native if not (root / path).read_text().startswith("// ")] == []


def test_the_name_of_a_test_is_a_sentence(root: Path, project_files: list[Path]) -> None:
    """At least three words: what, and what it does."""
    complaints = [
        f"{path}: {name}"
        for path in project_files
        if path.parts[0] == "tests" and path.suffix == ".py"
        for name in re.findall(r"^\s*def (test_\w+)", (root / path).read_text(), re.MULTILINE)
        if len(name.split("_")) < 4
    ]
    assert not complaints, "\n".join(complaints)


def test_a_catch_all_is_found_under_any_disguise() -> None:
    for name in ("utils.py", "_helpers.py", "test_common.py", "misc/x.py", "base.hpp"):
        assert is_catch_all(Path("src/crumb") / name), name
    for name in ("isa_baseline.cpp", "common_crawl.py", "database.py"):
        assert not is_catch_all(Path("src/crumb") / name), name


def test_a_missing_docstring_is_found() -> None:
    source = '"""x"""\ndef shown():\n    pass\ndef _hidden():\n    pass\nclass Bare:\n    pass\n'
    complaints = silent(Path("src/a.py"), source)
    assert [line.split(": ")[1].split()[0] for line in complaints] == ["shown", "Bare"]
    assert silent(Path("tests/a.py"), source) == []
    assert silent(Path("tests/a.py"), "") == ["tests/a.py: the module has no docstring"]
