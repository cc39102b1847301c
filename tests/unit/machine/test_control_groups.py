"""Limits of the process's own control group and of those around it, versions 1 and 2.

In: folders written as the kernel shows them. Out: the headroom and the quota.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from crumb.machine import control_groups
from crumb.machine.control_groups import memory_headroom_bytes, processor_quota

NO_FILES = "active_file 0\ninactive_file 0"
VERSION_2 = "31 30 0:26 {root} {point} rw - cgroup2 cgroup2 rw,nsdelegate"
VERSION_1 = (
    "32 30 0:27 {root} {point}/memory rw - cgroup cgroup rw,memory\n"
    "33 30 0:28 {root} {point}/cpu\\040time rw - cgroup cgroup rw,cpu,cpuacct"
)


class Groups:
    """Control groups below a folder, as one process sees them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.point = folder, folder / "groups"

    def see(self, entries: str, mounts: str, root: str = "/") -> None:
        """Write what the process's own files say of its groups."""
        (self.folder / "cgroup").write_text(entries + "\n")
        (self.folder / "mountinfo").write_text(
            "22 1 8:1 / / rw - ext4 disk rw\n" + mounts.format(point=self.point, root=root) + "\n"
        )

    def write(self, folder: str, files: Mapping[str, object]) -> None:
        (self.point / folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (self.point / folder / name).write_text(f"{content}\n")

    def memory_2(self, folder: str, limit: object, used: int, statistics: str = NO_FILES) -> None:
        files = {"memory.max": limit, "memory.current": used, "memory.stat": statistics}
        self.write(folder, files)


@pytest.fixture(autouse=True)
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    monkeypatch.setattr(control_groups, "PROC_SELF", tmp_path)
    return Groups(tmp_path)


def test_without_the_files_of_proc_nothing_is_limited() -> None:
    assert memory_headroom_bytes() is None
    assert processor_quota() is None


@pytest.mark.parametrize("missing", ["cgroup", "mountinfo"])
def test_with_one_of_the_files_missing_nothing_is_limited(groups: Groups, missing: str) -> None:
    groups.see("0::/unit", VERSION_2)
    groups.memory_2("unit", 4000, 0)
    (groups.folder / missing).unlink()
    assert memory_headroom_bytes() is None
    assert processor_quota() is None


def test_the_limit_of_the_own_group_counts_where_the_root_has_none(groups: Groups) -> None:
    groups.see("0::/slice/unit", VERSION_2)
    groups.memory_2("slice/unit", 10_000, 1_000)
    groups.memory_2("slice", "max", 1_000)
    assert memory_headroom_bytes() == 9_000


def test_the_least_headroom_on_the_way_to_the_root_counts(groups: Groups) -> None:
    groups.see("0::/slice/unit", VERSION_2)
    groups.memory_2("slice/unit", 10_000, 1_000)
    groups.memory_2("slice", 12_000, 8_000)
    groups.memory_2("", 50_000, 49_000)
    groups.memory_2("slice/other", 10, 10)
    assert memory_headroom_bytes() == 1_000


def test_a_level_without_its_files_is_passed_over(groups: Groups) -> None:
    groups.see("0::/slice/unit", VERSION_2)
    groups.memory_2("", 3_000, 1_000)
    assert memory_headroom_bytes() == 2_000


@pytest.mark.parametrize("missing", ["memory.max", "memory.current"])
def test_a_limit_without_its_use_or_a_use_without_a_limit_says_nothing(
    groups: Groups, missing: str
) -> None:
    groups.see("0::/unit", VERSION_2)
    groups.memory_2("unit", 10_000, 1_000)
    (groups.point / "unit" / missing).unlink()
    assert memory_headroom_bytes() is None


def test_pages_of_files_are_given_up_when_memory_is_needed(groups: Groups) -> None:
    groups.see("0::/unit", VERSION_2)
    groups.memory_2("unit", 4000, 3500, "anon 500\nactive_file 1000\ninactive_file 2000")
    assert memory_headroom_bytes() == 4000 - (3500 - 3000)
    (groups.point / "unit/memory.stat").unlink()
    assert memory_headroom_bytes() == 4000 - 3500


def test_a_group_that_has_taken_more_than_its_limit_has_no_room(groups: Groups) -> None:
    groups.see("0::/unit", VERSION_2)
    groups.memory_2("unit", 1_000, 1_500)
    assert memory_headroom_bytes() == 0


def test_a_limit_that_slows_down_counts_like_one_that_kills(groups: Groups) -> None:
    groups.see("0::/unit", VERSION_2)
    groups.memory_2("unit", "max", 1_000)
    groups.write("unit", {"memory.high": 5_000})
    assert memory_headroom_bytes() == 4_000


def test_version_1_counts_pages_of_files_of_all_groups_below(groups: Groups) -> None:
    groups.see("2:memory:/slice/unit\n1:cpu,cpuacct:/", VERSION_1)
    files = {"memory.limit_in_bytes": 4000, "memory.usage_in_bytes": 3500}
    statistics = "active_file 1\ntotal_active_file 1000\ntotal_inactive_file 2000"
    groups.write("memory/slice/unit", {**files, "memory.stat": statistics})
    groups.write("memory", {**files, "memory.limit_in_bytes": 9223372036854771712})
    assert memory_headroom_bytes() == 4000 - (3500 - 3000)


@pytest.mark.parametrize(
    ("own", "around", "expected"),
    [
        ("max 100000", "max 100000", None),
        ("50000 100000", "max 100000", 0.5),
        ("400000 100000", "150000 100000", 1.5),
        ("nonsense", "200000 100000", 2.0),
        ("100000 0", "", None),
        ("", "", None),
    ],
)
def test_the_least_quota_of_version_2_counts(
    groups: Groups, own: str, around: str, expected: float | None
) -> None:
    groups.see("0::/slice/unit", VERSION_2)
    groups.write("slice/unit", {"cpu.max": own})
    groups.write("slice", {"cpu.max": around})
    assert processor_quota() == expected


def test_the_least_quota_of_version_1_counts_and_a_mount_may_have_a_space(groups: Groups) -> None:
    groups.see("1:cpu,cpuacct:/slice/unit", VERSION_1)
    groups.write("cpu time/slice/unit", {"cpu.cfs_quota_us": 50000, "cpu.cfs_period_us": 100000})
    groups.write("cpu time/slice", {"cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 100000})
    assert processor_quota() == 0.5


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/docker/1f/unit", "/docker/1f"),  # the group as the host names it, the mount its part
        ("/unit", "/"),
    ],
)
def test_a_group_is_found_below_what_a_mount_shows(groups: Groups, path: str, root: str) -> None:
    groups.see(f"0::{path}", VERSION_2, root)
    groups.memory_2("unit", 7_000, 0)
    assert memory_headroom_bytes() == 7_000


@pytest.mark.parametrize("path", ["/elsewhere", "/../outside"])
def test_a_group_outside_the_mount_has_the_limit_at_the_mounts_top(
    groups: Groups, path: str
) -> None:
    groups.see(f"0::{path}", VERSION_2, "/docker/1f" if path == "/elsewhere" else "/")
    groups.memory_2("", 7_000, 0)
    groups.memory_2("../outside", 1, 0)
    assert memory_headroom_bytes() == 7_000


def test_lines_that_are_no_groups_or_mounts_are_passed_over(groups: Groups) -> None:
    groups.see("nonsense\n\n0::/unit", "short\n1 2 3 - cgroup2\n" + VERSION_2)
    groups.memory_2("unit", 7_000, 0)
    assert memory_headroom_bytes() == 7_000
