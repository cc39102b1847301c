"""Families that read a source and write a text against transformers as it is installed.

In: the tiny models. Needs PyTorch. Compared: logits, buckets of distances over many settings.
What all families have in common is in test_families.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import ENCODER_DECODERS, make_sources, make_tokens, tolerance

from crumb.operations.places import Buckets
from crumb.run.model import Model, open_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.oracle

each_variant = pytest.mark.parametrize("variant", ENCODER_DECODERS)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def written(variant: str, folder: Path) -> Any:
    """A directory that transformers writes, with weights of its own; the model."""
    settings = {key: each for key, each in ENCODER_DECODERS[variant].items() if key != "model_type"}
    config = transformers.AutoConfig.for_model(ENCODER_DECODERS[variant]["model_type"], **settings)
    torch.manual_seed(len(variant))
    model = transformers.AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            spread = 1.5 / tensor.shape[-1] ** 0.5 if tensor.ndim == 2 else 0.3
            if "shared" in name or "relative" in name:
                spread = 1.0
            if name.endswith(".q.weight"):  # scores are not scaled
                spread /= config.d_kv**0.5
            tensor.normal_(1.0 if tensor.ndim == 1 else 0.0, spread)
    model.eval().save_pretrained(folder)
    return model


@each_variant
def test_what_transformers_writes_gives_its_logits(variant: str, tmp_path: Path) -> None:
    theirs = written(variant, tmp_path)
    configuration = ENCODER_DECODERS[variant]
    tokens, sources = make_tokens(configuration), make_sources(configuration)
    with torch.no_grad():
        given = {"input_ids": torch.from_numpy(sources)}
        logits = theirs(**given, decoder_input_ids=torch.from_numpy(tokens)).logits.numpy()
    model = open_model(str(tmp_path))
    allowed = tolerance(model.plan, logits)
    for each, array in (
        (model, np.asarray),
        (Model(model.checkpoint, torch.asarray), torch.asarray),
    ):
        ours = np.asarray(each.logits(array(tokens), {"source": array(sources)}))
        np.testing.assert_allclose(ours, logits, rtol=0, atol=allowed)


@pytest.mark.parametrize("both_ways", [False, True])
def test_every_distance_has_the_bucket_that_transformers_gives_it(both_ways: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    apart = np.arange(-5000, 5001)
    for count in (4, 5, 7, 12, 31, 32, 64, 1024):
        for farthest in {count // 2 + 1, count, 50, 128, 333, 4096} - set(range(count // 2 + 1)):
            expected = T5Attention._relative_position_bucket(
                torch.from_numpy(apart), both_ways, count, farthest
            )
            numbered = Buckets(count, farthest, both_ways).numbered(apart)
            np.testing.assert_array_equal(numbered, expected.numpy(), f"{count}, {farthest}")
