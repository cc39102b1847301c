"""`crumb demo` with two variants and few windows: the table, the JSON, what stays on the disk.

In: the embedded model, quantized by rounding alone so that the test is quick. Out: what is printed.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import crumb

from crumb.cli import demo
from crumb.cli.demo import VARIANTS, Variant
from crumb.formats.catalog import ZeroKind
from crumb.solve.problem import Method, Scales, SolveSettings

Capsys = pytest.CaptureFixture[str]

FIRST = Variant("round", 4, 128, ZeroKind.FIXED)
SECOND = Variant("gptq", 3, 128, ZeroKind.FIXED)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two variants, both rounded, three short windows, few words."""
    rounding = SolveSettings(method=Method.ROUND, scales=Scales.MINMAX)
    monkeypatch.setattr(demo, "VARIANTS", [FIRST, SECOND])
    monkeypatch.setattr(demo, "SOLVERS", {"round": rounding, "gptq": rounding})
    monkeypatch.setattr(demo, "WINDOW_TOKENS", 64)
    monkeypatch.setattr(demo, "WINDOWS", 3)
    monkeypatch.setattr(demo, "SPOKEN_TOKENS", 6)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first demo leaves its models and the second finds them."""
    return tmp_path_factory.mktemp("kept")


def test_the_demo_as_json_keeps_its_models_where_it_is_told(kept: Path, capsys: Capsys) -> None:
    finished = crumb(capsys, "demo", "--json", "--keep", kept)
    assert finished.code == 0
    record = json.loads(finished.out)
    assert [Path(each["model"]).name for each in record["models"]] == [
        "novella-7m",
        FIRST.name,
        SECOND.name,
    ]
    float_model, four, three = record["models"]
    assert float_model["divergence"] is None
    assert 0 < four["divergence"]["kl"]["value"] < three["divergence"]["kl"]["value"]
    assert three["file_bytes"] < four["file_bytes"] < float_model["file_bytes"]
    assert len(record["texts"]) == 2
    assert sorted(path.name for path in kept.iterdir()) == sorted([FIRST.name, SECOND.name])


def test_the_demo_prints_a_table_and_two_texts_of_kept_models(kept: Path, capsys: Capsys) -> None:
    finished = crumb(capsys, "demo", "--keep", kept)
    assert finished.code == 0
    assert "novella-7m on excerpt-evaluation, protocol gptq, 3 windows of 64" in finished.out
    rows = {}
    for line in finished.out.splitlines():
        cells = line.split()
        for name in ("float", "round", "gptq"):
            if name in cells and cells[0].isdecimal():
                rows[name] = cells
    assert [row[0] for row in rows.values()] == ["16", "4", "3"]
    assert "top-1 agreement" in finished.out
    texts = [line for line in finished.out.splitlines() if "The old man looked at the sea" in line]
    assert len(texts) == 1
    assert texts[0].count("The old man looked at the sea") == 2
    assert "about 850 MB of memory" in finished.err
    assert finished.err_lines[-1].startswith("done in ")


def test_the_variants_of_the_demo_have_names_of_their_own() -> None:
    names = [variant.name for variant in VARIANTS]
    assert len(set(names)) == len(names)
    assert Variant(*demo.SPOKEN) in VARIANTS
