"""A head in the file of a model whose configuration ties it to the embedding.

In: tiny checkpoints with such a head. Out: the plan that is run, its logits, warnings.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import EMBEDDING, HEAD, make_tensors, write_checkpoint

from crumb.checkpoints.huggingface import tied_head
from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import CheckpointError, CrumbWarning
from crumb.run.model import open_model

TIED = {"tie_word_embeddings": True}


def test_a_head_that_differs_is_used_and_this_is_told(tmp_path: Path) -> None:
    tensors = make_tensors(tied=False)
    tied = write_checkpoint(tmp_path / "tied", tensors, configuration=TIED)
    untied = write_checkpoint(tmp_path / "untied", tensors)
    tokens = np.arange(6)[None]
    with pytest.warns(CrumbWarning, match=r"lm_head\.weight: the head differs.*so it is used"):
        logits = open_model(str(tied)).logits(tokens)
    assert np.array_equal(logits, open_model(str(untied)).logits(tokens))


def test_the_configuration_that_travels_on_is_untied(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", make_tensors(tied=False), configuration=TIED)
    with pytest.warns(CrumbWarning):
        checkpoint = open_checkpoint(model)
    assert checkpoint.configuration["tie_word_embeddings"] is False


@pytest.mark.parametrize("at_once", [64, 1 << 22])
def test_a_head_that_is_equal_passes_without_a_word_however_it_is_read(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tied_head, "WEIGHTS_AT_ONCE", at_once)
    tensors = make_tensors()
    model = write_checkpoint(
        tmp_path / "m", tensors | {HEAD: tensors[EMBEDDING]}, configuration=TIED
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint = open_checkpoint(model)
    assert HEAD not in checkpoint.tensors.entries
    assert checkpoint.plan == open_checkpoint(write_checkpoint(tmp_path / "plain", tensors)).plan


def test_one_row_that_differs_makes_another_head(tmp_path: Path) -> None:
    tensors = make_tensors()
    head = tensors[EMBEDDING].copy()
    head[-1, -1] += 1
    model = write_checkpoint(tmp_path / "m", tensors | {HEAD: head}, configuration=TIED)
    with pytest.warns(CrumbWarning, match="differs"):
        assert HEAD in {spec.name for spec in open_checkpoint(model).plan.tensors()}


def test_a_head_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    tensors = make_tensors()
    short = tensors | {HEAD: tensors[EMBEDDING][:-1]}
    model = write_checkpoint(tmp_path / "m", short, configuration=TIED)
    with (
        pytest.warns(CrumbWarning, match="differs"),
        pytest.raises(CheckpointError, match=r"shape.*|lm_head\.weight"),
    ):
        open_checkpoint(model)
