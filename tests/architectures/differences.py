"""How far our log-probabilities lie from transformers', and one of our executors from the other.

In: the name of a tiny model. Out: Compared. Needs PyTorch.
Run: python tests/architectures/differences.py, which measures all of them and writes what
docs/families.md and `crumb families` print.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from record_golden import restate
from recurrent_configurations import RECURRENT
from rwkv_reference import STEPS, logits_behind
from tiny_models import (
    ATTENTION,
    ENCODER_DECODERS,
    EVERY,
    make_sources,
    make_tokens,
    make_weights,
    write_model,
)

from crumb.architectures.registry import plan_of
from crumb.checkpoints.opening import open_checkpoint
from crumb.run.engine import Engine, Rows, StepPart
from crumb.run.memory_plan import ActivationKind, CacheKind, EngineSettings
from crumb.run.model import Model
from crumb.run.sampling import log_softmax

RECORD = Path(__file__).parents[2] / "src" / "crumb" / "architectures" / "differences.json"

PROMPT_TOKENS = GREEDY_TOKENS = 64

LARGEST = {"transformers": 1e-3, "executors": 1e-5}
"""Difference of a log-probability; of a logit between our executors, over the largest logit."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Compared:
    """One tiny model in both libraries: a prompt, and greedy tokens with a cache behind it."""

    transformers: float  # largest difference of a log-probability, up to where the texts part
    executors: float  # of a logit between native engine and array executor, over the largest
    ours: list[int]
    theirs: list[int]


def compare(variant: str) -> Compared:
    """Both in f32, ours by the native engine."""
    configuration = restate(EVERY[variant])
    prompt = make_tokens(configuration)[0, :PROMPT_TOKENS]
    given = {"source": make_sources(configuration)[:1]} if variant in ENCODER_DECODERS else {}
    with tempfile.TemporaryDirectory() as name:
        folder = write_model(Path(name), configuration)
        if given:
            theirs, their_text = _theirs_of_source(folder, prompt, given["source"])
        else:
            theirs, their_text = _theirs(variant, folder, prompt)
        checkpoint = open_checkpoint(folder)
        ours, our_text = _ours(checkpoint, prompt, given)
        whole = np.concatenate([prompt, our_text])[:-1]
        again = Model(checkpoint).logits(whole[None], given)[0]
    same = PROMPT_TOKENS + _agreed(our_text, their_text)
    apart = np.abs(log_softmax(ours[:same]) - log_softmax(theirs[:same])).max()
    executors = np.abs(ours - again).max() / np.abs(again).max()
    return Compared(float(apart), float(executors), our_text, their_text)


def _agreed(one: list[int], other: list[int]) -> int:
    """Tokens before the first that differs."""
    differ = (place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    return next(differ, len(one))


def _ours(
    checkpoint: Any, prompt: NDArray[np.int64], inputs: dict[str, NDArray[np.int64]]
) -> tuple[Floats, list[int]]:
    """Logits of the prompt and of each greedy token but the last, and those tokens."""
    source = inputs["source"][0].tolist() if inputs else ()
    settings = EngineSettings(
        context_tokens=max(PROMPT_TOKENS + GREEDY_TOKENS, len(source)),
        step_tokens=PROMPT_TOKENS,
        logits_rows=PROMPT_TOKENS,
        cache=CacheKind.F32,
        activations=ActivationKind.F32,
        threads=1,
    )
    engine = Engine(checkpoint, settings)
    sequence = engine.begin(prompt.tolist(), reuse=False, source=source)
    return _greedy(
        prompt.tolist(), lambda given: engine.run([StepPart(sequence, given, Rows.ALL)]).copy()
    )


def _greedy(given: list[int], run: Callable[[list[int]], Floats]) -> tuple[Floats, list[int]]:
    """Logits of a prompt and of the greedy tokens behind it but the last, and those tokens."""
    text, rows = list[int](), list[Floats]()
    while len(text) < GREEDY_TOKENS:
        rows.append(run(given))
        text.append(int(rows[-1][-1].argmax()))
        given = text[-1:]
    return np.concatenate(rows), text


def _theirs(variant: str, folder: Path, prompt: NDArray[np.int64]) -> tuple[Floats, list[int]]:
    """The same of transformers, or of plain formulas where it has no class."""
    if EVERY[variant]["model_type"] in STEPS:
        weights = make_weights(plan_of(EVERY[variant]))
        return _greedy(prompt.tolist(), logits_behind(EVERY[variant], weights))
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        attn_implementation=ATTENTION.get(variant, "eager"),
        experts_implementation="eager",
    ).eval()
    before = list[int]()

    def run_again(given: list[int]) -> Floats:
        """The whole text: what a model keeps beside keys and values is no cache of transformers."""
        before.extend(given)
        logits: Floats = model(torch.tensor([before]), use_cache=False).logits[0].numpy()
        return logits[-len(given) :]

    with torch.no_grad():
        if variant in RECURRENT:
            return _greedy(prompt.tolist(), run_again)
        cache = transformers.DynamicCache(config=model.config)
        return _greedy(
            prompt.tolist(),
            lambda given: (
                model(torch.tensor([given]), cache=cache, use_cache=True).logits[0].numpy()
            ),
        )


def _theirs_of_source(
    folder: Path, prompt: NDArray[np.int64], source: NDArray[np.int64]
) -> tuple[Floats, list[int]]:
    """The same of a model that reads a source."""
    model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        folder, attn_implementation="eager"
    ).eval()
    cache = transformers.EncoderDecoderCache(
        transformers.DynamicCache(), transformers.DynamicCache()
    )
    with torch.no_grad():
        read = model.encoder(torch.from_numpy(source))

        def run(given: list[int]) -> Floats:
            kept = {"encoder_outputs": read, "cache": cache, "use_cache": True}
            logits: Floats = (
                model(decoder_input_ids=torch.tensor([given]), **kept).logits[0].numpy()
            )
            return logits

        return _greedy(prompt.tolist(), run)


def main() -> None:
    """Measure all tiny models; write the largest of each family."""
    torch.set_num_threads(1)
    largest: dict[str, dict[str, float]] = {}
    for variant, configuration in EVERY.items():
        compared = compare(variant)
        row = largest.setdefault(configuration["model_type"], {})
        for kind in ("transformers", "executors"):
            row[kind] = max(row.get(kind, 0.0), float(f"{getattr(compared, kind):.1e}"))
        texts = "" if compared.ours == compared.theirs else "the texts differ"
        print(variant, compared.transformers, compared.executors, texts, flush=True)
        RECORD.write_text(json.dumps(dict(sorted(largest.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
