"""What the control groups of this process allow it: memory and processor time.

In: /proc/self/cgroup, /proc/self/mountinfo and the groups' own files, versions 1 and 2.
Out: the least limit from the process's own group up to the root; None where there is none.
Source: cgroups(7), proc_pid_mountinfo(5); the kernel's admin-guide, cgroup-v1 and cgroup-v2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

PROC_SELF = Path("/proc/self")
"""Where the system describes this process."""

VERSION_2 = ""
"""The controllers that /proc/self/cgroup names for the groups of version 2: none."""

MEMORY_FILES = (
    ("memory.max", "memory.current"),
    ("memory.high", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""A limit in bytes, or "max", and what the group has taken of it. Beyond memory.high a process is
slowed down until it hardly moves."""

FILE_PAGES = ("active_file", "inactive_file")
"""Rows of memory.stat: pages of files count as taken, and are given up when needed."""


def memory_headroom_bytes() -> int | None:
    """Bytes that the groups still let this process take."""
    headrooms = [
        room for folder in _folders(PROC_SELF, "memory") for room in _memory_headrooms(folder)
    ]
    return min(headrooms, default=None)


def processor_quota() -> float | None:
    """Processors' worth of time that the groups give; read once in a process."""
    return _quota(PROC_SELF)


@cache
def _quota(proc_self: Path) -> float | None:
    quotas = (_folder_quota(folder) for folder in _folders(proc_self, "cpu"))
    return min((quota for quota in quotas if quota is not None), default=None)


def _memory_headrooms(folder: Path) -> Iterator[int]:
    rows = re.findall(r"^(\S+) (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
    statistics = {name: int(count) for name, count in rows}
    files = sum(statistics.get(f"total_{name}", statistics.get(name, 0)) for name in FILE_PAGES)
    for limit_name, usage_name in MEMORY_FILES:
        limit, usage = _text(folder / limit_name).strip(), _text(folder / usage_name).strip()
        if limit.isdecimal() and usage.isdecimal():
            yield max(0, int(limit) - max(0, int(usage) - files))


def _folder_quota(folder: Path) -> float | None:
    """Of one group: microseconds of time in a period, over the period."""
    words = _text(folder / "cpu.max").split() or [
        _text(folder / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    ]
    if len(words) != 2 or not all(word.isdecimal() for word in words) or not int(words[1]):
        return None
    return int(words[0]) / int(words[1])


def _folders(proc_self: Path, controller: str) -> Iterator[Path]:
    """The folder of the process's group and of each group around it, of both versions."""
    groups = _groups(_text(proc_self / "cgroup"))
    for point, root, controllers in _mounts(_text(proc_self / "mountinfo")):
        for name in {controller, VERSION_2} & controllers:
            if name in groups:
                yield from _upwards(point, root, groups[name])


def _groups(text: str) -> dict[str, str]:
    """Controller -> path of the group, from lines such as 4:cpu,cpuacct:/slice."""
    groups: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        groups |= dict.fromkeys(controllers.split(","), path)
    return groups


def _mounts(text: str) -> Iterator[tuple[Path, PurePosixPath, frozenset[str]]]:
    """Where groups are mounted, which of them is at the mount's top, and the controllers."""
    for line in text.splitlines():
        place, _, source = line.partition(" - ")
        fields, kinds = place.split(), source.split()
        if len(fields) < 5 or not kinds:
            continue
        options = kinds[-1].split(",") if kinds[0] == "cgroup" else [VERSION_2]
        if kinds[0] in ("cgroup", "cgroup2"):
            root, point = map(_unescaped, fields[3:5])
            yield Path(point), PurePosixPath(root), frozenset(options)


def _upwards(point: Path, root: PurePosixPath, group: str) -> Iterator[Path]:
    """Folders of a group and those around it, as far as the mount shows them."""
    path = PurePosixPath(group)
    # Inside a container the group may be named as the host sees it, and lie outside the mount.
    inside = path.relative_to(root) if path.is_relative_to(root) else PurePosixPath()
    if ".." in inside.parts:
        inside = PurePosixPath()
    folder = point / inside
    yield folder
    for _ in inside.parts:
        folder = folder.parent
        yield folder


def _unescaped(field: str) -> str:
    """A field of mountinfo, where a space is written \\040."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def _text(path: Path) -> str:
    """A file of the system, empty where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
