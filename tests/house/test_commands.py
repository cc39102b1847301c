"""What continuous integration runs is what the Makefile has.

In: .ci/run, the workflows, the pages. Out: `make` targets that are not there.
"""

from __future__ import annotations

import re
from pathlib import Path

MAKE = re.compile(r"(?:^|[`\s])make ((?:[A-Z_]+=\S+ )*)([a-z]+)\b(?=[`\s]|$)", re.MULTILINE)
RUNS = (".ci/run", ".github/workflows/build.yml")
TABLE = re.compile(r"^\| `make ([a-z]+)`", re.MULTILINE)


def targets(makefile: str) -> set[str]:
    """Names that may follow `make`."""
    return set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))


def test_every_target_that_is_run_is_in_the_makefile(root: Path) -> None:
    makefile = (root / "Makefile").read_text()
    for name in RUNS:
        asked = {target for _, target in MAKE.findall((root / name).read_text())}
        assert asked, name
        assert asked <= targets(makefile), name


def test_contributing_lists_every_target_with_its_purpose(root: Path) -> None:
    listed = set(TABLE.findall((root / "CONTRIBUTING.md").read_text()))
    phony = re.search(r"^\.PHONY: (.+)$", (root / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert listed == set(phony[1].split()) - {"lint"}


def test_a_target_is_seen_behind_its_variables() -> None:
    text = "run: make test PYTHON=python\nstep make demo\n`make A=b wheel`\nto make it\n"
    assert [target for _, target in MAKE.findall(text)] == ["test", "demo", "wheel", "it"]
