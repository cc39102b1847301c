"""The examples of running a server: their variables exist, their paths too, their commands run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run_process
from live_server import Live

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"
CONTAINERFILE = (EXAMPLES / "Containerfile").read_text()


@pytest.fixture(scope="module")
def variables() -> set[str]:
    """What `crumb serve` reads from its environment."""
    return set(re.findall(r"CRUMB_\w+", run_process("serve", "--help").out))


@pytest.mark.parametrize("name", ["crumb.service", "crumb.env", "Containerfile"])
def test_every_variable_of_an_example_is_one_that_the_server_reads(
    variables: set[str], name: str
) -> None:
    named = set(re.findall(r"CRUMB_\w+", (EXAMPLES / name).read_text()))
    assert named
    assert named <= variables


def test_what_the_container_is_built_of_exists_and_is_all_that_the_build_needs() -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", CONTAINERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert all((ROOT / source).exists() for source in copied)
    assert {"pyproject.toml", "CMakeLists.txt", "README.md", "native", "src"} <= copied


def test_the_container_runs_without_rights_of_root() -> None:
    last = CONTAINERFILE.split("FROM ")[-1]
    users = re.findall(r"^USER (\d+)", last, re.MULTILINE)
    assert users == ["10001"]
    assert last.index("USER") < last.index("ENTRYPOINT")


def health_command() -> list[str]:
    joined = CONTAINERFILE.replace("\\\n", "")
    words = re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", joined, re.MULTILINE)
    assert words is not None
    return [str(word) for word in json.loads(words[1])]


def test_the_health_check_of_the_container_tells_a_server_from_none(server: Live) -> None:
    command = [sys.executable, *health_command()[1:]]
    for port, expected in ((server.port, 0), (1, 1)):
        environment = {**os.environ, "CRUMB_PORT": str(port)}
        done = subprocess.run(command, check=False, env=environment, capture_output=True)
        assert done.returncode == expected, done.stderr


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze")
    unit = (EXAMPLES / "crumb.service").read_text()
    assert "ExecStart=/opt/crumb/bin/crumb serve" in unit
    here = tmp_path / "crumb.service"
    here.write_text(unit.replace("/opt/crumb/bin/crumb", "/bin/true"))
    done = subprocess.run([analyze, "verify", here], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
