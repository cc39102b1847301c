"""Guessed tokens on and off, on texts that repeat themselves and on texts that do not.

In: a model with a chat template. Out: JSON: for each text the ratio of decoding speeds with guesses
to those without, in turns within one process, and how many guesses came true. The texts are answers
as a capable model writes them, and the model's own. Both ways must give the same tokens.
Refuses nothing: a ratio below 1 is a result.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import numpy as np
from answers import OTHER, REPEATING

import crumb
from crumb.machine.processors import processors
from crumb.run.language_model import LanguageModel

OWN = {
    "story": "Tell a story about a lighthouse keeper and a storm.",
    "list": "Give ten ideas for a rainy Sunday with children.",
    "copy": "Repeat this text exactly:\nThe river Rhine rises in the Swiss Alps. It flows through "
    "Lake Constance and forms the border between Germany and France for 182 kilometres. At Basel "
    "it turns north.",
}
"""What the model answers itself."""


def forced(model: LanguageModel, answer: str) -> dict[str, Any]:
    """Options under which a model writes this answer, each token from its own logits."""
    tokens = model.tokenizer.encode(answer, special=False)
    vocabulary = model.engine.plan.vocabulary

    def hook(made: tuple[int, ...], logits: Any) -> Any:
        del logits
        allowed = np.zeros(vocabulary, bool)
        allowed[tokens[len(made)]] = True
        return allowed

    return {"logits_hook": hook, "max_tokens": len(tokens), "ignore_end": True}


def ratio(model: LanguageModel, words: str, rounds: int, options: dict[str, Any]) -> dict[str, Any]:
    """Speeds in turns: off, on, off, on."""
    speeds: dict[bool, list[float]] = {True: [], False: []}
    tokens = set()
    for turn in range(2 * rounds):
        on = turn % 2 == 1
        last = model.chat([{"role": "user", "content": words}], speculate=on, **options)
        speeds[on].append(last.timings.decode_tokens_per_second)
        tokens.add(last.tokens)
        if on:
            drafted, accepted = last.drafted_tokens, last.accepted_tokens
    assert len(tokens) == 1, "guesses changed a text"
    pairs = [on / off for on, off in zip(speeds[True], speeds[False], strict=True)]
    return {
        "ratio": round(statistics.median(pairs), 3),
        "tokens_per_second": round(statistics.median(speeds[True]), 1),
        "tokens": len(tokens.pop()),
        "drafted": drafted,
        "accepted": accepted,
    }


def main() -> None:
    """Print the figures of all texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=processors())
    arguments = parser.parse_args()
    kinds: dict[str, dict[str, Any]] = {
        "greedy": {"temperature": 0.0},
        "drawn": {"temperature": 0.7, "top_p": 0.9, "seed": 1},
    }
    figures: dict[str, Any] = {"threads": arguments.threads}
    with crumb.load(arguments.model, threads=arguments.threads) as model:
        for name, (words, answer) in (REPEATING | OTHER).items():
            figures[name] = ratio(model, words, arguments.rounds, forced(model, answer))
        for name, words in OWN.items():
            for kind, sampling in kinds.items():
                options = {"max_tokens": arguments.tokens, "repetition_penalty": 1.0, **sampling}
                figures[f"own {name}, {kind}"] = ratio(model, words, arguments.rounds, options)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
