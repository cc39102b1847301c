"""Token shifts of RWKV-7 as older directories have them, in one tensor: the same logits.

In: a tiny model, written both ways. Out: logits; the refusal of another shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import VARIANTS, make_tokens, write_model

from crumb.errors import CheckpointError
from crumb.run.model import open_model

RWKV7 = VARIANTS["rwkv7"]


def join_shifts(folder: Path, **changed: Any) -> None:
    """Rewrite a directory as it was written once."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for block in range(RWKV7["num_hidden_layers"]):
        name = f"model.layers.{block}.attn.x_"
        rows = [tensors.pop(f"{name}{letter}").reshape(-1) for letter in "rwkvag"]
        tensors[f"{name}x"] = np.stack(rows)
    save_file(tensors | changed, path)


def test_token_shifts_may_lie_in_one_tensor(tmp_path: Path) -> None:
    folder, tokens = write_model(tmp_path, RWKV7), make_tokens(RWKV7)[:, :20]
    expected = open_model(str(folder)).logits(tokens)
    join_shifts(folder)
    np.testing.assert_array_equal(open_model(str(folder)).logits(tokens), expected)


def test_other_shapes_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_model(tmp_path, RWKV7)
    join_shifts(folder, **{"model.layers.1.attn.x_x": np.zeros((5, 39), np.float32)})
    with pytest.raises(CheckpointError, match=r"layers\.1\.attn\.x_x.*\[6, 39\].*\[5, 39\]"):
        open_model(str(folder))
