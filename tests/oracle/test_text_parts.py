"""The text part of a model that also sees, as transformers writes and runs it.

In: a tiny Gemma 3, Llama 4, Mistral 3, Qwen3.5 with eyes. Out: logits of texts. Needs PyTorch.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from tiny_models import VARIANTS, make_tokens, tolerance

from crumb.errors import CrumbWarning
from crumb.run.model import open_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.oracle

EYES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
EYES |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}


SQUARE = EYES | {"projector_input_dim": 16, "projector_output_dim": 16, "vision_output_dim": 16}
SQUARE |= {"num_channels": 3, "pixel_shuffle_ratio": 0.5}

DEEP = {"hidden_size": 16, "intermediate_size": 16, "depth": 1, "num_heads": 2}
DEEP |= {"out_hidden_size": 40, "patch_size": 14, "num_position_embeddings": 4}

SEEING = {
    "gemma3_text": ("Gemma3", EYES),
    "llama4_text": ("Llama4", SQUARE),
    "mistral": ("Mistral3", EYES | {"model_type": "pixtral", "head_dim": 8}),
    "qwen3_5_text": ("Qwen3_5", DEEP),
    "qwen3_5_moe_text": ("Qwen3_5Moe", DEEP),
    "ministral3": ("Mistral3", EYES | {"model_type": "pixtral", "head_dim": 8}),
}

INSIDE = ("llama4_text",)
"""Whose whole model fails in transformers 5.24 without a picture: its text part is asked."""


@pytest.mark.parametrize("variant", SEEING)
def test_logits_of_texts_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    name, eyes = SEEING[variant]
    text = deepcopy(VARIANTS[variant])
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=eyes)
    config._attn_implementation = config.text_config._experts_implementation = "eager"
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "language_model" in name:
                tensor.normal_(0, 0.3 if tensor.ndim < 2 else 0.2)
        tokens = make_tokens(text)
        asked = model.language_model if variant in INSIDE else model
        expected = asked(input_ids=torch.from_numpy(tokens)).logits.numpy()
    model.save_pretrained(tmp_path)
    with pytest.warns(CrumbWarning, match="left aside"):
        ours = open_model(str(tmp_path))
    allowed = tolerance(ours.plan, expected)
    np.testing.assert_allclose(ours.logits(tokens), expected, rtol=0, atol=allowed)
