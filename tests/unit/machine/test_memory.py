"""Memory of the machine and of this process, with each source missing in turn."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest

from crumb.machine import memory
from crumb.machine.memory import (
    available_bytes,
    memory_bytes,
    peak_memory_bytes,
    resident_bytes,
)

PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No control groups, and files of the system in a folder that is empty at first."""
    monkeypatch.setattr(memory, "memory_headroom_bytes", lambda: None)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    return tmp_path


def without(*names: str) -> object:
    """A sysconf that lacks some names, as macOS does."""

    def answer(name: str) -> int:
        if name in names:
            raise ValueError("unrecognized configuration name")
        return {"SC_PAGE_SIZE": PAGE, "SC_PHYS_PAGES": 1000, "SC_AVPHYS_PAGES": 600}[name]

    return answer


def test_the_system_says_what_is_available(alone: Path) -> None:
    (alone / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:   4000 kB\n")
    assert available_bytes() == 4000 * 1024


def test_without_meminfo_free_pages_count_and_without_those_all_memory(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sysconf", without())
    assert available_bytes() == 600 * PAGE
    (alone / "meminfo").write_text("MemTotal:  9000 kB\n")
    assert available_bytes() == 600 * PAGE
    monkeypatch.setattr(os, "sysconf", without("SC_AVPHYS_PAGES"))
    assert available_bytes() == memory_bytes() == 1000 * PAGE
    monkeypatch.setattr(os, "sysconf", without("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
    assert available_bytes() == memory_bytes() == sys.maxsize


def test_a_control_group_with_less_room_than_the_machine_counts(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (alone / "meminfo").write_text("MemAvailable:   4000 kB\n")
    for headroom, expected in ((5000, 4000), (3000, 3000), (0, 0)):
        monkeypatch.setattr(memory, "memory_headroom_bytes", lambda kib=headroom: kib * 1024)
        assert available_bytes() == expected * 1024


def test_the_process_says_what_it_has_and_has_had(alone: Path) -> None:
    (alone / "status").write_text("Name:\tx\nVmHWM:\t    3000 kB\nVmRSS:\t    2000 kB\n")
    assert peak_memory_bytes() == 3000 * 1024
    assert resident_bytes() == 2000 * 1024


@pytest.mark.parametrize(("unit", "written"), [(1, 5_000_000), (1024, 5_000)])
def test_without_the_status_file_the_peak_comes_from_getrusage_in_its_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: int, written: int
) -> None:
    class Usage:
        ru_maxrss = written

    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    monkeypatch.setattr(memory, "MAXRSS_UNIT_BYTES", unit)
    monkeypatch.setattr(resource, "getrusage", lambda who: Usage)
    assert peak_memory_bytes() == resident_bytes() == unit * written


def test_an_array_that_was_written_raises_the_peak_by_its_bytes() -> None:
    before = peak_memory_bytes()
    block = bytearray(max(0, before - resident_bytes()) + (64 << 20))
    assert peak_memory_bytes() >= before + (60 << 20), len(block)
    assert resident_bytes() <= peak_memory_bytes() < memory_bytes()
