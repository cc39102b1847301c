"""What a loaded model holds of the system: one descriptor a weight file, however many tensors.

In: the embedded model in several containers, loaded twice in a process that may open few files.
Out: the number of open files.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from crumb.embedded import MODELS
from crumb.exporting import Container, ExportRequest, export

LOADS = """
import os, resource, sys
import crumb

crumb.load(sys.argv[1], context_tokens=64).close()  # whatever is opened once
before = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (before + 8, before + 8))
models = [crumb.load(sys.argv[1], context_tokens=64) for _ in range(3)]
print(len(os.listdir("/proc/self/fd")) - before)
texts = [model.generate("The sea", max_tokens=2, temperature=0).text for model in models]
assert len(set(texts)) == 1
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc")
@pytest.mark.parametrize("container", [Container.SAFETENSORS, Container.GGUF])
def test_three_models_of_one_file_share_its_one_descriptor(
    container: Container, tmp_path: Path
) -> None:
    (model,) = list(MODELS.values())[:1]
    suffix = ".gguf" if container is Container.GGUF else ""
    out = tmp_path / f"model{suffix}"
    export(ExportRequest(str(model), out, container))
    said = subprocess.run(
        [sys.executable, "-c", LOADS, out], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    assert int(said.stdout) <= 1
