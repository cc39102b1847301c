"""What machine a benchmark ran on, as a record for its JSON.

In: nothing. Out: processor, processors of this process, memory, load, versions; no host name and
no path. A version is null where the package is not installed; nothing heavy is imported.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from crumb import __version__
from crumb.kernels.dispatch import selected_set
from crumb.machine.memory import memory_bytes
from crumb.machine.processors import processor_name, processors

PACKAGES = ("numpy", "torch", "transformers")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CRUMB_ISA")


def describe_machine() -> dict[str, Any]:
    """The machine as it is now; the load says how quiet it was."""
    return {
        "processor": processor_name(),
        "processors": processors(),
        "memory_bytes": memory_bytes(),
        "load_1_minute": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "crumb": __version__,
        "crumb_instruction_set": selected_set(),
        "versions": {name: version_or_none(name) for name in PACKAGES},
        "variables": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
    }


def version_or_none(package: str) -> str | None:
    """The installed version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def one_line(machine: dict[str, Any]) -> str:
    """The machine as one line above a table."""
    versions = [f"{name} {found}" for name, found in machine["versions"].items() if found]
    return ", ".join(
        [
            machine["processor"],
            f"{machine['processors']} processors",
            f"{machine['memory_bytes'] / 1e9:.1f} GB",
            f"load {machine['load_1_minute']}",
            f"Python {machine['python']}",
            *versions,
            f"crumb {machine['crumb']} ({machine['crumb_instruction_set']})",
        ]
    )
