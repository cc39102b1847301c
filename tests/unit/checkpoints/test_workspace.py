"""The workspace of a quantization: storing, finding again, claiming, publishing.

In: packed tensors and jobs' keys. Out: the same tensors, or None, or a refusal. What happens when
runs die is in tests/e2e, what happens to damaged files in tests/malformed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crumb.checkpoints.crumb.workspace import open_workspace, published_key
from crumb.errors import OutputConflict
from crumb.files.atomic_file import write_json
from crumb.formats.catalog import ZeroKind, make_format
from crumb.formats.grid import GroupParameters
from crumb.formats.packed_tensor import PackedTensor
from crumb.kernels.decode import decode
from crumb.kernels.tile import pack_tensor

KEY: dict[str, Any] = {"crumb": "0", "bits": 3, "solve": {"method": "gptq", "damping": None}}
OTHER = KEY | {"bits": 4, "solve": {"method": "gptq", "damping": 0.1}}
RECORD: dict[str, Any] = {"relative_error": 0.001, "fallback": None, "shape": [5, 70]}


def packed(zero: ZeroKind) -> PackedTensor:
    """A matrix with a ragged last group."""
    generator = np.random.default_rng(0)
    format = make_format(3, 32, zero)
    scale = generator.uniform(0.1, 1, (5, 3)).astype(np.float16)
    point = generator.integers(0, 8, (5, 3)).astype(np.uint8)
    minimum = generator.normal(size=(5, 3)).astype(np.float16)
    parameters = GroupParameters(
        scale,
        point if zero is ZeroKind.VARIABLE else None,
        minimum if zero is ZeroKind.MINIMUM else None,
    )
    return pack_tensor(generator.integers(0, 8, (5, 70)).astype(np.uint8), parameters, format)


@pytest.mark.parametrize("zero", ZeroKind)
def test_a_stored_tensor_is_found_again_with_its_record(zero: ZeroKind, tmp_path: Path) -> None:
    tensor = packed(zero)
    with open_workspace(tmp_path / "out", KEY, restart=False) as workspace:
        assert workspace is not None
        assert workspace.finished("x") is None
        assert workspace.stored_bytes() == 0
        workspace.store("x", tensor, RECORD)
        workspace.store("y", tensor, RECORD)
        assert workspace.stored_bytes() > 2 * tensor.size_bytes
    with open_workspace(tmp_path / "out", KEY, restart=False) as workspace:
        assert workspace is not None
        found = workspace.finished("x")
        assert found is not None
        assert found.record == RECORD
        np.testing.assert_array_equal(decode(found.entry.read()), decode(tensor))
        assert workspace.finished("z") is None


def test_work_of_the_same_job_is_kept_whatever_restart_says(tmp_path: Path) -> None:
    for restart in (False, True):
        with open_workspace(tmp_path / "out", KEY, restart) as workspace:
            assert workspace is not None
            if not restart:
                workspace.store("x", packed(ZeroKind.FIXED), RECORD)
            assert workspace.finished("x") is not None


def test_work_of_another_job_is_refused_or_replaced(tmp_path: Path) -> None:
    with open_workspace(tmp_path / "out", KEY, restart=False) as workspace:
        assert workspace is not None
        workspace.store("x", packed(ZeroKind.FIXED), RECORD)
    with (
        pytest.raises(OutputConflict, match=r"bits 4, solve\.damping 0\.1") as caught,
        open_workspace(tmp_path / "out", OTHER, restart=False),
    ):
        pass
    assert "found bits 3, solve.damping None" in str(caught.value)
    with open_workspace(tmp_path / "out", OTHER, restart=True) as workspace:
        assert workspace is not None
        assert workspace.finished("x") is None


def test_a_claim_without_work_is_nobodys(tmp_path: Path) -> None:
    """A run that was stopped before its first tensor does not stand in another's way."""
    with open_workspace(tmp_path / "out", KEY, restart=False):
        pass
    assert (tmp_path / "out.partial" / "job.json").exists()
    with open_workspace(tmp_path / "out", OTHER, restart=False) as workspace:
        assert workspace is not None


def test_one_process_holds_a_workspace_at_a_time(tmp_path: Path) -> None:
    with (
        open_workspace(tmp_path / "out", KEY, restart=False),
        pytest.raises(OutputConflict, match="another process is quantizing here"),
        open_workspace(tmp_path / "out", KEY, restart=False),
    ):
        pass
    with open_workspace(tmp_path / "out", KEY, restart=False) as workspace:
        assert workspace is not None


def test_publishing_moves_the_model_and_removes_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with open_workspace(out, KEY, restart=False) as workspace:
        assert workspace is not None
        workspace.store("x", packed(ZeroKind.FIXED), RECORD)
        write_json(workspace.partial / "model" / "manifest.json", {"job": KEY})
        assert published_key(out) is None
        workspace.publish()
    assert published_key(out) == KEY
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with open_workspace(out, KEY, restart=False) as workspace:
        assert workspace is None
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_key_survives_json_whatever_its_numbers(tmp_path: Path) -> None:
    """Floats and large integers must compare equal after a round trip, or nothing resumes."""
    key = KEY | {"damping": 0.1 + 0.2, "tiny": 5e-324, "seed": 2**80, "text": "é"}
    with open_workspace(tmp_path / "out", key, restart=False) as workspace:
        assert workspace is not None
        workspace.store("x", packed(ZeroKind.FIXED), RECORD)
    with open_workspace(tmp_path / "out", key, restart=False) as workspace:
        assert workspace is not None
        assert workspace.finished("x") is not None


def test_another_programs_manifest_has_no_key(tmp_path: Path) -> None:
    assert published_key(tmp_path) is None
    for manifest in ({}, {"job": None}, {"job": "crumb"}, {"job": {"name": "site"}}):
        write_json(tmp_path / "manifest.json", manifest)
        assert published_key(tmp_path) is None
    write_json(tmp_path / "manifest.json", {"job": KEY})
    assert published_key(tmp_path) == KEY
