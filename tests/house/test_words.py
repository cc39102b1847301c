"""Words: names of locals say what a thing is, lines of the pages are short sentences.

In: the sources of src/crumb, the pages. Out: names that say how a thing came, and long lines.
`found` beside `expected` is the word of an error, and stays.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

PARTICIPLES = ("found", "given", "wanted", "kept", "stored", "known")
"""Nobody finds a variable by how its value came."""

LINE_LENGTH = 120


def participles(source: str) -> list[str]:
    """Variables of a module that bear one of those names, each once a function."""
    functions = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    ]
    variables = []
    for function in functions:
        names = {
            node.id
            for node in ast.walk(function)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        names |= {argument.arg for argument in ast.walk(function) if isinstance(argument, ast.arg)}
        allowed = {"found"} if "expected" in names else set()
        variables += sorted(names.intersection(PARTICIPLES) - allowed)
    return variables


def long_lines(page: str) -> list[int]:
    """Numbers of the lines that are too long, outside tables and code."""
    numbers, is_code = [], False
    for number, line in enumerate(page.splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif len(line) > LINE_LENGTH and not is_code and not re.match(r"\s*(\||<!--)", line):
            numbers.append(number)
    return numbers


def test_no_variable_is_named_by_how_its_value_came(root: Path, project_files: list[Path]) -> None:
    sources = [path for path in project_files if path.suffix == ".py" and path.parts[0] == "src"]
    complaints = {path: participles((root / path).read_text()) for path in sources}
    assert not {str(path): names for path, names in complaints.items() if names}


def test_no_line_of_a_page_is_too_long(root: Path, project_files: list[Path]) -> None:
    pages = [path for path in project_files if path.suffix == ".md" and len(path.parts) < 3]
    assert Path("README.md") in pages
    complaints = []
    for path in pages:
        numbers = long_lines((root / path).read_text())
        if numbers:
            complaints.append(f"{path}: lines {numbers} have more than {LINE_LENGTH} characters")
    assert not complaints, "\n".join(complaints)


def test_a_participle_is_seen_as_a_variable_and_as_a_parameter() -> None:
    assert participles("def f(given):\n    found = given\n    return found\n") == ["found", "given"]
    assert participles("def f(x):\n    for known in x:\n        x.found(kept=known)\n") == ["known"]
    assert participles("def f(expected, found):\n    return found\n") == []


def test_a_long_line_is_seen_outside_tables_and_code() -> None:
    long = "x" * 121
    assert long_lines(f"{long}\n| {long} |\n```\n{long}\n```\n  {long}\n") == [1, 6]
