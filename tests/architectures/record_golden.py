"""Record the golden files: what transformers makes of every tiny model.

In: the tiny models and transformers, which needs PyTorch, or the formulas of rwkv_reference.py for
models that transformers does not have. Out, for each: golden/<variant>.json with
the configuration as transformers writes it and the printed Plan, and golden/<variant>.npz with
logits (2, places, vocabulary). Refuses weights that transformers does not take one by one.
Run: python tests/architectures/record_golden.py [variant ...]
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from rwkv_reference import STEPS, reference_logits
from tiny_models import (
    ATTENTION,
    ENCODER_DECODERS,
    EVERY,
    GOLDEN,
    PLACES,
    make_sources,
    make_tokens,
    make_weights,
    write_model,
)

from crumb.architectures.registry import plan_of
from crumb.errors import CrumbError


def restate(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as the installed transformers writes it."""
    if configuration["model_type"] in STEPS:
        return dict(configuration)
    # A copy: transformers writes into what it is given.
    settings = deepcopy(dict(configuration))
    del settings["model_type"]
    config = transformers.AutoConfig.for_model(configuration["model_type"], **settings)
    stated: dict[str, Any] = json.loads(config.to_json_string())
    stated.pop("transformers_version")
    return stated


def understood(configuration: Mapping[str, Any]) -> str | None:
    """The Plan of the configuration as transformers completes it, None where it refuses."""
    try:
        return str(plan_of(restate(configuration)))
    except CrumbError:
        raise
    except Exception:  # it refuses in many ways
        return None


def transformers_logits(
    folder: Path,
    tokens: NDArray[np.int64],
    attention: str = "eager",
    sources: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Logits of a model directory, each of whose tensors must be wanted, and none missing."""
    kind = transformers.AutoModelForCausalLM
    given = {"input_ids": torch.from_numpy(tokens)}
    if sources is not None:
        kind = transformers.AutoModelForSeq2SeqLM
        given = {"input_ids": torch.from_numpy(sources), "decoder_input_ids": given["input_ids"]}
    model, info = kind.from_pretrained(
        folder,
        output_loading_info=True,
        attn_implementation=attention,
        experts_implementation="eager",
    )
    wrong = {key: found for key, found in info.items() if found}
    assert not wrong, wrong
    with torch.no_grad():
        logits: NDArray[np.float32] = model.eval()(**given, use_cache=False).logits.numpy()
    return logits


def golden(variant: str) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """What the golden files of a variant hold."""
    configuration = restate(EVERY[variant])
    if configuration["model_type"] in STEPS:
        weights = make_weights(plan_of(configuration))
        logits = reference_logits(configuration, weights, make_tokens(configuration))
        return _stated(configuration), logits[:, PLACES, :]
    sources = make_sources(configuration) if variant in ENCODER_DECODERS else None
    with tempfile.TemporaryDirectory() as name:
        folder = write_model(Path(name), configuration)
        attention = ATTENTION.get(variant, "eager")
        logits = transformers_logits(folder, make_tokens(configuration), attention, sources)
    return _stated(configuration), logits[:, PLACES, :]


def _stated(configuration: dict[str, Any]) -> dict[str, Any]:
    return {"configuration": configuration, "plan": str(plan_of(configuration)).splitlines()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for variant in sys.argv[1:] or EVERY:
        stated, logits = golden(variant)
        (GOLDEN / f"{variant}.json").write_text(json.dumps(stated, indent=1) + "\n")
        np.savez_compressed(GOLDEN / f"{variant}.npz", logits=logits)
        print(variant, logits.shape)
