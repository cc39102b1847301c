"""Random schemas, as many valid answers of a model that knows no JSON."""

from __future__ import annotations

import json

import jsonschema
import pytest
from exhaustive import exhaustive
from random_schemas import random_schema

import crumb
from crumb.embedded import MODELS
from crumb.requests.generate_request import make_request
from crumb.run.language_model import LanguageModel

SEEDS = range(200)


def answers(model: LanguageModel, seeds: range) -> list[str]:
    """An answer for each schema: greedy, or drawn."""
    requests = [
        make_request(
            "An example as JSON:\n",
            json_schema=random_schema(seed),
            max_tokens=800,
            temperature=0.7 * (seed % 2),
            seed=seed,
        )
        for seed in seeds
    ]
    generations = model.run(requests)
    assert all(each.error is None for each in generations)
    return [each.text for each in generations]


def check(texts: list[str], seeds: range) -> None:
    """Every answer is valid for its schema, formats included."""
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    for seed, text in zip(seeds, texts, strict=True):
        schema = random_schema(seed)
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(json.loads(text), schema, format_checker=checker)


@pytest.mark.parametrize("seeds", [SEEDS[:20], *exhaustive(SEEDS[20:])], ids=str)
def test_answers_of_the_embedded_model_are_valid(seeds: range) -> None:
    with crumb.load(MODELS["novella-7m"], context_tokens=1024, sequences=8) as model:
        check(answers(model, seeds), seeds)
