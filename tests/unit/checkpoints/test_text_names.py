"""Directories whose tensors have other words before their names: text parts, and no prefix at all.

In: tiny models, their tensors renamed as published files have them. Out: the same logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import VARIANTS, make_tokens, write_model

from crumb.architectures.registry import plan_of
from crumb.errors import CrumbWarning
from crumb.run.model import open_model

EYE = {
    f"vision_tower.{name}.weight": np.ones(3, np.float32)
    for name in ("layers.0.norm", "model.layers.0.input_layernorm")
}

RENAMED: dict[str, tuple[str, Callable[[str], str], str | None]] = {
    "files of the hub": ("gemma3_text", lambda name: f"language_model.{name}", "gemma3"),
    "files of version 5": (
        "gemma3_text",
        lambda name: name.replace("model.", "model.language_model."),
        "gemma3",
    ),
    "a head beside the model": ("mistral", lambda name: f"language_model.{name}", "mistral3"),
    "eyes with blocks of the same names": (
        "llama4_text",
        lambda name: f"language_model.{name}",
        "llama4",
    ),
    "no prefix": ("opt-after", lambda name: name.removeprefix("model."), None),
}


@pytest.mark.parametrize("case", RENAMED)
def test_a_model_with_other_prefixes_gives_the_same_logits(case: str, tmp_path: Path) -> None:
    variant, renamed, outer = RENAMED[case]
    configuration: dict[str, Any] = VARIANTS[variant]
    folder = write_model(tmp_path, configuration)
    tokens = make_tokens(configuration)
    expected = open_model(str(folder)).logits(tokens)
    path = folder / "model.safetensors"
    arrays = {renamed(name): array for name, array in load_file(path).items()}
    if outer is None:
        save_file(arrays, path)
        again = open_model(str(folder))
    else:
        save_file(arrays | EYE, path)
        wrapped = {"model_type": outer, "text_config": configuration, "vision_config": {}}
        (folder / "config.json").write_text(json.dumps(wrapped))
        with pytest.warns(CrumbWarning, match="left aside.*vision_tower"):
            again = open_model(str(folder))
        assert again.plan.family == configuration["model_type"]
    np.testing.assert_array_equal(again.logits(tokens), expected)


@pytest.mark.parametrize("tied", [True, False])
def test_the_outer_configuration_says_whether_the_head_is_tied(tied: bool) -> None:
    text = VARIANTS["ministral3"] | {"tie_word_embeddings": not tied}
    wrapped = {"model_type": "mistral3", "text_config": text, "tie_word_embeddings": tied}
    plan = plan_of(wrapped)
    assert plan.family == "ministral3"
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    assert list(plan.linears())[-1].weight == head
