"""`crumb pull` and `crumb ls`: fit is asked first, a cut download goes on, hashes are checked.

In: a server that stands in for the hub, the embedded model, broken and damaged answers. Out: what
lies in the cache, the bytes that were fetched, lists.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Finished, crumb, quantize_line, refusal, run_process, succeed
from hub_server import HeadOfFile, HubServer, serve_hub
from recorded_models import recorded_configuration, repository_of
from tiny_checkpoint import write_checkpoint

from crumb.cli.main import main
from crumb.embedded import MODELS

NOVELLA = MODELS["novella-7m"]
WEIGHTS = "model.safetensors"
Capsys = pytest.CaptureFixture[str]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with serve_hub(HubServer()) as hub:
        hub.add("org/novella", {file.name: file.read_bytes() for file in NOVELLA.iterdir()})
        yield hub


def on_hub(hub: HubServer, home: Path, *arguments: object) -> Finished:
    """The command in a process of its own, with this hub."""
    hub.given.clear()
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return run_process(*arguments, HF_ENDPOINT=hub.address, HF_HOME=str(home), **quiet)


def test_a_model_is_fetched_once_checked_and_listed(hub: HubServer, tmp_path: Path) -> None:
    done = on_hub(hub, tmp_path, "pull", "org/novella", "--json")
    assert done.code == 0, done.err
    pulled = json.loads(done.out)
    size = (NOVELLA / WEIGHTS).stat().st_size
    assert (pulled["files"], pulled["size_bytes"]) == (1, size)
    assert (Path(pulled["path"]) / WEIGHTS).read_bytes() == (NOVELLA / WEIGHTS).read_bytes()
    again = on_hub(hub, tmp_path, "pull", "org/novella")
    assert again.code == 0
    assert hub.given[WEIGHTS] < 1 << 18  # the header that fit reads
    listed = on_hub(hub, tmp_path, "ls", "--json")
    rows = {row["name"]: row for row in json.loads(listed.out)}
    assert rows.keys() == {"org/novella", "novella-7m"}
    assert rows["org/novella"]["file_bytes"] == size
    assert rows["org/novella"]["fits"] is True


def test_a_download_that_was_cut_off_goes_on_where_it_ended(hub: HubServer, tmp_path: Path) -> None:
    size = (NOVELLA / WEIGHTS).stat().st_size
    hub.cut_whole = {WEIGHTS: size - (1 << 20)}  # the library keeps blocks of 10 MB
    done = on_hub(hub, tmp_path, "pull", "org/novella")
    assert done.code == 0, done.err
    assert not hub.cut_whole
    assert size <= hub.given[WEIGHTS] < 1.5 * size


def test_a_file_that_is_another_is_refused_and_removed(hub: HubServer, tmp_path: Path) -> None:
    hub.listed_hashes = {WEIGHTS: "0" * 64}
    done = on_hub(hub, tmp_path, "pull", "org/novella")
    assert done.code == 1
    assert "is not what the hub says it is" in done.err
    assert not list(tmp_path.rglob(WEIGHTS))


def test_a_model_that_does_not_fit_is_not_fetched(hub: HubServer, tmp_path: Path) -> None:
    hub.add("org/13b", repository_of(recorded_configuration("llama-2-13b")))
    done = on_hub(hub, tmp_path, "pull", "org/13b", "--memory", "2GB")
    assert done.code == 3
    assert "no format of this model fits" in done.err
    header = repository_of(recorded_configuration("llama-2-13b"))[WEIGHTS]
    assert isinstance(header, HeadOfFile)
    assert hub.given[WEIGHTS] < len(header.content) + (1 << 18)


def test_names_that_cannot_be_pulled_are_refused(hub: HubServer, tmp_path: Path) -> None:
    assert on_hub(hub, tmp_path, "pull", "org/none").code == 4
    done = on_hub(hub, tmp_path, "pull", "novella-7m")
    assert done.code == 2
    assert "here already" in done.err


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, capsys: Capsys) -> None:
    line = refusal(capsys, 4, "ls", str(tmp_path / "none"))
    assert f"{tmp_path / 'none'}: there is no such folder" in line


def test_ls_tells_formats_sizes_and_problems(tmp_path: Path, capsys: Capsys) -> None:
    source = write_checkpoint(tmp_path / "tiny")
    assert main(quantize_line(source, tmp_path / "out", method="round")) == 0
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    (tmp_path / "broken" / WEIGHTS).write_bytes(b"no")
    rows: dict[str, Any] = {
        Path(row["name"]).name: row for row in json.loads(succeed(capsys, "ls", tmp_path, "--json"))
    }
    assert rows["out"]["format"] == "int3-g32-fixed"
    assert rows["tiny"]["format"] == "float16"
    assert rows["tiny"]["file_bytes"] == (source / WEIGHTS).stat().st_size
    assert "model_type" in rows["broken"]["problem"]
    assert rows["broken"]["fits"] is None
    text = crumb(capsys, "ls", tmp_path).out
    assert "int3-g32-fixed" in text
    assert "novella-7m" in text
