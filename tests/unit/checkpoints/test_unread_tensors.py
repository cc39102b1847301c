"""Tensors of a file that its configuration does not speak of: refused, told, or harmless.

In: tiny llama checkpoints with more tensors than a llama has. Out: errors and warnings.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_checkpoint import make_tensors, write_checkpoint

from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import CheckpointError, CrumbWarning
from crumb.run.stored_matrices import weights_bytes

LAYER = "model.layers.0.self_attn."
OTHER_MODELS = {
    f"{LAYER}q_proj.bias": np.full(64, 0.5),
    f"{LAYER}q_norm.weight": np.ones(16),
    f"{LAYER}q_proj.lora_A.weight": np.ones((4, 64)),
    "model.layers.2.mlp.experts.0.up_proj.weight": np.ones((2, 2)),
    "model.layers.1.post_feedforward_layernorm.weight": np.ones(64),
    "model.norm.bias": np.ones(64),
    "model.embed_tokens.lora_embedding_A": np.ones((4, 300)),
}
HARMLESS = {
    f"{LAYER}rotary_emb.inv_freq": np.ones(8),
    f"{LAYER}k_scale": np.ones(()),
    f"{LAYER}q_proj.bias": np.zeros(64),
    "model.layers.0.mlp.down_proj.input_scale": np.ones(()),
}
ASIDE = {
    "vision_tower.blocks.0.attn.weight": np.ones((2, 2)),
    "model.layers.9.self_attn.q_proj.weight": np.ones((64, 64)),
    "score.weight": np.ones((2, 64)),
}


def with_one_more(folder: Path, name: str, values: NDArray[np.float64]) -> Path:
    """A tiny model and one tensor."""
    return write_checkpoint(folder / "model", make_tensors() | {name: values})


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_a_tensor_that_makes_it_another_model_is_refused_by_name(name: str, tmp_path: Path) -> None:
    model = with_one_more(tmp_path, name, OTHER_MODELS[name])
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(model)
    assert caught.value.found == name
    assert caught.value.do is not None


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_nothing_passes_without_a_word(name: str, tmp_path: Path) -> None:
    open_checkpoint(with_one_more(tmp_path, name, HARMLESS[name]))


@pytest.mark.parametrize("name", ASIDE)
def test_what_lies_outside_the_model_is_named_and_left_aside(name: str, tmp_path: Path) -> None:
    with pytest.warns(CrumbWarning, match=f"left aside .found {name}"):
        open_checkpoint(with_one_more(tmp_path, name, ASIDE[name]))


def test_many_are_counted_after_the_first_three(tmp_path: Path) -> None:
    more = {f"model.layers.0.extra_{place}.weight": np.ones(2) for place in range(9)}
    model = write_checkpoint(tmp_path / "m", make_tensors() | more)
    with pytest.raises(CheckpointError, match=r"extra_2\.weight and 6 more"):
        open_checkpoint(model)


def test_what_is_left_aside_takes_no_memory_in_the_plan(tmp_path: Path) -> None:
    plain = open_checkpoint(write_checkpoint(tmp_path / "plain"))
    with pytest.warns(CrumbWarning, match="left aside"):
        more = open_checkpoint(with_one_more(tmp_path, "vision.weight", np.ones((1000, 64))))
    assert weights_bytes(more) == weights_bytes(plain)
