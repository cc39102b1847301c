"""One record of a generation: its keywords are its fields, and numbers of any kind are numbers.

In: settings as users give them. Out: plain values, or a refusal that names the setting.
"""

from __future__ import annotations

import typing
from dataclasses import fields
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from crumb.errors import UsageError
from crumb.requests.generate_request import (
    FORMS,
    GenerateOptions,
    GenerateRequest,
    Sampling,
    make_request,
    plain_prompt,
    prompt_list,
)


def test_the_keywords_are_the_fields_with_their_types() -> None:
    keywords = typing.get_type_hints(GenerateOptions)
    spellings = {name: keywords.pop(name) for name in FORMS if name != "format"}
    assert spellings.keys() == {"response_format", "json_schema", "grammar", "regex"}
    records = typing.get_type_hints(GenerateRequest) | typing.get_type_hints(Sampling)
    assert keywords == {name: kind for name, kind in records.items() if name != "prompt"}
    names = [each.name for record in (GenerateRequest, Sampling) for each in fields(record)]
    assert sorted(names) == sorted({*keywords, "prompt"})
    assert GenerateOptions.__required_keys__ == frozenset()


def test_numbers_of_numpy_become_plain_numbers() -> None:
    request = make_request(
        np.array([300, 301], np.uint16),
        max_tokens=np.int64(3),
        temperature=np.float32(0.5),
        top_p=Fraction(1, 2),
        seed=np.uint64(2**63),
        logit_bias={np.int32(5): np.float16(-1)},
        stop="end",
    )
    assert request.prompt == (300, 301)
    assert request.stop == ("end",)
    assert (request.max_tokens, type(request.max_tokens)) == (3, int)
    sampling = request.sampling
    assert (sampling.temperature, type(sampling.temperature)) == (0.5, float)
    assert (sampling.top_p, sampling.seed, sampling.logit_bias) == (0.5, 2**63, ((5, -1.0),))
    tokens = request.prompt
    assert {type(token) for token in tokens} == {int}


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": np.float64(2.5)},
        {"max_tokens": np.bool_(True)},
        {"max_tokens": "3"},
        {"seed": 2**64},
        {"seed": -1},
        {"temperature": "hot"},
        {"temperature": np.nan},
        {"temperature": True},
        {"top_p": 10**400},
        {"logit_bias": {1.5: 1.0}},
        {"logit_bias": {1: np.inf}},
    ],
)
def test_what_is_no_such_number_is_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        make_request("x", **settings)


def test_defaults_hold_where_no_keyword_speaks() -> None:
    own = Sampling(temperature=0.6, top_p=0.9)
    request = make_request("x", own, temperature=0.1)
    assert request.sampling == Sampling(temperature=0.1, top_p=0.9)
    assert make_request("x", own, sampling=Sampling(top_k=3)).sampling == Sampling(top_k=3)
    assert make_request("x").max_tokens == 256
    assert make_request("x", max_tokens=None).max_tokens is None


def test_a_list_of_prompts_is_told_from_a_prompt() -> None:
    for single in ("text", [1, 2], (1, 2), np.array([1, 2]), [np.int64(1)], b"x", None):
        assert prompt_list(single) is None
    assert prompt_list(["a", "b"]) == ["a", "b"]
    assert prompt_list(("a", [1, 2])) == ["a", [1, 2]]
    assert prompt_list([]) == []


def test_bytes_are_refused_with_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"found bytes\). Decode them first"):
        plain_prompt(b"The sea")
