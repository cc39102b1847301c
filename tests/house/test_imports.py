"""Imports go one way: each room of src/crumb sees only the rooms its row names.

In: the imports of every module, those inside functions too. Out: those that no row allows.
Also: `import crumb` is light, and no module needs an optional package to be imported.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FORMATS = ("errors", "formats")
KERNELS = (*FORMATS, "machine", "kernels")
LOADED = (*KERNELS, "progress", "operations", "architectures", "files", "tokenizer", "embedded")
CHECKPOINTS = (*LOADED, "checkpoints")
RUN = (*CHECKPOINTS, "requests", "pieces", "structure", "run")
STAGES = (*RUN, "texts", "requests", "calibrate", "solve", "evaluation", "fitting")

ROOMS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "progress": (),
    "pieces": (),
    "embedded": (),
    "files": ("errors",),
    "tokenizer": ("errors", "files"),
    "formats": ("errors",),
    "machine": (),
    "texts": ("errors",),
    "operations": ("errors",),
    "architectures": ("errors", "operations"),
    "kernels": (*FORMATS, "machine", "_native"),
    "solve": KERNELS,
    "checkpoints": LOADED,
    "requests": (*FORMATS, "operations", "architectures", "solve"),
    "structure": ("errors", "pieces", "files", "tokenizer", "requests"),
    "run": (*CHECKPOINTS, "requests", "pieces", "structure"),
    "calibrate": (*RUN, "texts"),
    "evaluation": (*RUN, "texts"),
    "fitting": (*RUN, "requests", "solve", "evaluation", "texts", "calibrate"),
    "quantize_record": STAGES,
    "quantize_run": (*STAGES, "quantize_record"),
    "planning": STAGES,
    "pipeline": (*STAGES, "quantize_run", "planning"),
    "exporting": STAGES,
    "study": (*STAGES, "pipeline"),
    "server": (*STAGES, "pieces"),
    "cli": (*STAGES, "pipeline", "planning", "exporting", "study", "server", "crumb"),
    "crumb": (*STAGES, "pipeline", "exporting"),
    "__main__": ("cli",),
}
"""Room -> the rooms it may import beside itself; "crumb" is the package's own front door."""

VERSION = "crumb.__version__"
"""A constant, not a module: every room may import it."""

OPTIONAL = (
    "array_api_strict",
    "lm_eval",
    "pyarrow",
    "safetensors",
    "sentencepiece",
    "torch",
    "transformers",
)
"""Packages of the extras: no module of Crumb may load one merely by being imported."""

HEAVY = ("numpy", "scipy", "pandas", "tokenizers", "huggingface_hub", "cyclopts", "rich")
"""Packages that `import crumb` leaves for whoever uses them."""


def room_of(path: Path) -> str:
    """The room of a module, from its path below src/crumb."""
    first = path.parts[0]
    return "crumb" if first == "__init__.py" else first.removesuffix(".py")


def imported_modules(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every module of ours that a source imports, in any way."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{_origin(node, package)}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            names = [_start_of_text(node.args[0])]
        for name in names:
            if name.split(".")[0] == "crumb" and name != VERSION:
                yield node.lineno, name


def _origin(node: ast.ImportFrom, package: str) -> str:
    """The module after "from", relative ones resolved."""
    if not node.level:
        return node.module or ""
    above = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])


def _called(node: ast.Call) -> str:
    name = node.func
    return name.attr if isinstance(name, ast.Attribute) else getattr(name, "id", "")


def _start_of_text(node: ast.expr) -> str:
    """The constant text a string expression begins with."""
    if isinstance(node, ast.JoinedStr):
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def forbidden(path: Path, source: str) -> list[str]:
    """One line for each import of a module below src/crumb that its room's row lacks."""
    room = room_of(path)
    if room not in ROOMS:
        return [f"{path}: the room {room} has no row in ROOMS"]
    package = ".".join(["crumb", *path.parts[:-1]])
    complaints = []
    for line, name in imported_modules(source, package):
        parts = name.split(".")
        known = len(parts) > 1 and (parts[1] in ROOMS or parts[1] == "_native")
        target = parts[1] if known else "crumb"
        if target != room and target not in ROOMS[room]:
            complaints.append(f"{path}:{line}: {room} may not import {target} ({name})")
    return complaints


def loaded_after(code: str) -> set[str]:
    """Names of the top-level modules that a fresh interpreter has loaded after some code."""
    show = "import json, sys; print(json.dumps(sorted({n.split('.')[0] for n in sys.modules})))"
    command = [sys.executable, "-c", f"{code}\n{show}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_imports_go_one_way(root: Path, project_files: list[Path]) -> None:
    package = Path("src/crumb")
    modules = [path for path in project_files if package in path.parents and path.suffix == ".py"]
    complaints = [
        complaint
        for path in modules
        for complaint in forbidden(path.relative_to(package), (root / path).read_text())
    ]
    assert modules
    assert not complaints, "\n".join(complaints)


def test_the_table_itself_has_no_circle() -> None:
    finished: set[str] = {"_native"}
    while len(finished) <= len(ROOMS):
        ready = {
            room for room, sees in ROOMS.items() if room not in finished and finished >= set(sees)
        }
        assert ready, f"these rooms wait for each other: {sorted(set(ROOMS) - finished)}"
        finished |= ready


def test_every_way_of_importing_upwards_is_found() -> None:
    ways = (
        "from crumb.run.model import Model",
        "from crumb import run",
        "import crumb.run.model as model",
        "from ..run import model",
        "def late():\n    from crumb.run import session",
        "importlib.import_module('crumb.run.model')",
        "import_module(f'crumb.run.{name}')",
        "if TYPE_CHECKING:\n    from crumb.run.model import Model",
    )
    for source in ways:
        (complaint,) = forbidden(Path("formats/grid.py"), source)
        assert "formats may not import run" in complaint, source


def test_an_import_downwards_or_within_the_room_is_allowed() -> None:
    source = "import crumb.run\nfrom . import model\nfrom crumb.errors import UsageError\n"
    source += "from crumb import __version__\n"
    assert forbidden(Path("run/session.py"), source) == []


def test_an_unknown_room_and_the_front_door_from_below_are_refused() -> None:
    assert "no row" in forbidden(Path("misplaced/thing.py"), "")[0]
    assert "may not import crumb" in forbidden(Path("run/session.py"), "import crumb")[0]


def test_importing_crumb_loads_nothing_heavy_and_nothing_optional() -> None:
    loaded = loaded_after("import crumb")
    assert "crumb" in loaded
    assert loaded & {*OPTIONAL, *HEAVY} == set()


def test_the_command_line_loads_no_command_before_it_is_asked_for() -> None:
    loaded = loaded_after("import crumb.cli.main")
    heavy = {*HEAVY, "starlette", "uvicorn", "jinja2"} - {"cyclopts", "rich"}
    assert "cyclopts" in loaded
    assert loaded & {*OPTIONAL, *heavy} == set()


def test_no_module_needs_an_optional_package_to_be_imported() -> None:
    walk = (
        "import importlib, pkgutil, crumb\n"
        "found = pkgutil.walk_packages(crumb.__path__, 'crumb.')\n"
        "names = [module.name for module in found if not module.name.endswith('__main__')]\n"
        "assert 'crumb.run.array_executor' in names, names\n"
        "for name in names: importlib.import_module(name)"
    )
    loaded = loaded_after(walk)
    assert "numpy" in loaded
    assert loaded & set(OPTIONAL) == set()
