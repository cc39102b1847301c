"""A measurement in a process of its own, so that its memory, its caches and its settings are.

In: a benchmark program, words behind its `--alone`, variables of the environment. Out: the JSON
that it prints. Where it fails, the last line it complained with ends this program too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def measure_alone(program: str, *words: object, **environment: str) -> Any:
    """Run `program --alone words...` and read what it prints."""
    done = subprocess.run(
        [sys.executable, program, "--alone", *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    if done.returncode:
        raise SystemExit((done.stderr.splitlines() or [f"ended with {done.returncode}"])[-1])
    return json.loads(done.stdout)
