"""`crumb fit`: a model on the hub is told by its headers, and nothing fits is exit code 3.

In: a server that stands in for the hub and counts the bytes it gives, the embedded model. Out:
JSON, tables, refusals.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Finished, crumb, refusal, run_process, succeed
from hub_server import HeadOfFile, HubServer, serve_hub
from recorded_models import recorded_configuration, repository_of

import crumb as package
from crumb.embedded import MODELS
from crumb.fitting import fit as fitting

NOVELLA = MODELS["novella-7m"]
Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with serve_hub(HubServer()) as hub:
        hub.add("org/novella", {file.name: file.read_bytes() for file in NOVELLA.iterdir()})
        hub.add("org/13b", repository_of(recorded_configuration("llama-2-13b")))
        hub.add("org/alien", {"config.json": b'{"model_type": "alien"}', "model.safetensors": b""})
        hub.add("org/pickle", {"config.json": b"{}", "pytorch_model.bin": b"x"})
        yield hub


def fit_hub(hub: HubServer, home: Path, *arguments: object) -> Finished:
    """The command in a process of its own, with this hub."""
    hub.given.clear()
    return run_process("fit", *arguments, "--no-speed", HF_ENDPOINT=hub.address, HF_HOME=str(home))


def test_a_model_on_the_hub_is_told_by_its_headers_alone(hub: HubServer, tmp_path: Path) -> None:
    done = fit_hub(hub, tmp_path, "org/13b", "--memory", "10GiB", "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    (model,) = record["models"]
    assert model["parameters"] == 13_015_864_320
    best = model["rows"][model["best"]]
    assert best["format"] == "super4-g32-fixed"
    assert best["memory"]["weights_bytes"] == 40 * 317_194_240 * 4.25 / 8 + 209_920_000 + 829_440
    weights = repository_of(recorded_configuration("llama-2-13b"))["model.safetensors"]
    assert isinstance(weights, HeadOfFile)
    assert hub.given["model.safetensors"] < len(weights.content) + (1 << 18)


def test_the_outline_of_a_model_gives_the_rows_of_the_model_itself(
    hub: HubServer, tmp_path: Path, capsys: Capsys
) -> None:
    done = fit_hub(hub, tmp_path, "org/novella", "--json")
    of_hub, local = (
        json.loads(text)["models"][0]["rows"]
        for text in (done.out, succeed(capsys, "fit", NOVELLA, "--no-speed", "--json"))
    )
    for row, same in zip(of_hub, local, strict=True):
        for each in (row, same):  # other processes have other sizes
            del each["memory"]["process_bytes"], each["memory_bytes"]
        assert row == same
    assert hub.given["model.safetensors"] < 1 << 18


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("org/none", 4, "no such repository"),
        ("org/13b/x.gguf", 4, "no such file"),
        ("org/alien", 1, "alien"),
        ("org/pickle", 1, "pickle weights alone"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(
    hub: HubServer, tmp_path: Path, model: str, code: int, words: str
) -> None:
    done = fit_hub(hub, tmp_path, model)
    assert done.code == code
    (line,) = [line for line in done.err_lines if line.startswith("crumb: ")]
    assert words in line


def test_nothing_that_fits_is_exit_code_3_and_says_what_lacks(capsys: Capsys) -> None:
    done = crumb(capsys, "fit", "novella-7m", "--memory", "40MB", "--no-speed")
    assert done.code == 3
    assert "nothing fits: int2-g128-fixed lacks" in done.out
    assert "found 40.00 MB by the request" in done.err
    record = json.loads(
        crumb(capsys, "fit", "novella-7m", "--memory", "40MB", "--no-speed", "--json").out
    )
    assert record["fits"] is False
    assert record["models"][0]["best"] is None


def test_the_best_row_is_the_one_that_fits_and_loses_least(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    # that of pytest's process grows from run to run
    monkeypatch.setattr(fitting, "process_bytes", lambda *_: 60_000_000)
    rows = json.loads(succeed(capsys, "fit", NOVELLA, "--no-speed", "--json"))["models"][0]["rows"]
    by_name = {row["format"]: row["memory_bytes"] for row in rows}
    between = (by_name["super4-g32-fixed"] + by_name["int4-g32-fixed"]) // 2
    text = crumb(capsys, "fit", NOVELLA, "--no-speed", "--memory", between).out
    assert "yes, the best" in next(line for line in text.splitlines() if "super4" in line)
    assert "of the loss" in text


def test_several_models_are_ranked_and_those_that_cannot_be_opened_are_told(
    capsys: Capsys, tmp_path: Path
) -> None:
    done = crumb(capsys, "fit", "novella-7m", tmp_path / "nothing", "--no-speed", "--json")
    assert done.code == 0
    record = json.loads(done.out)
    assert len(record["models"]) == 1
    assert "nothing" in record["failures"][0]


def test_a_control_group_smaller_than_the_machine_is_said(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "memory_headroom_bytes", lambda: 60_000_000)
    monkeypatch.setattr("crumb.machine.memory.memory_headroom_bytes", lambda: 60_000_000)
    done = crumb(capsys, "fit", "novella-7m", "--no-speed")
    assert done.code == 3
    assert "memory: 60.00 MB is available, says a control group" in done.out


def test_python_gives_the_same_report() -> None:
    report = package.fit("novella-7m", memory="8GiB", context_tokens=512, parallel=2, speed=False)
    (model,) = report.models
    assert (model.context_tokens, model.parallel) == (512, 2)
    assert model.best_row is not None
    assert model.best_row.format == "float16"
    assert report.fits


def test_a_usage_that_cannot_be_is_refused(capsys: Capsys) -> None:
    assert "memory" in refusal(capsys, 2, "fit", "novella-7m", "--memory", "much")
    assert "fewer positions" in refusal(
        capsys, 2, "fit", "novella-7m", "--no-speed", "--context", "99999"
    )
