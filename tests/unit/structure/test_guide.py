"""Thoughts are ended when they have been long enough, and the form begins behind them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

import crumb
from crumb.embedded import MODELS
from crumb.errors import UsageError
from crumb.requests.reply_format import ReplyFormat, ReplyKind, ThinkingRules
from crumb.run.language_model import LanguageModel
from crumb.structure.guide import Guide, make_guide
from crumb.structure.matcher import GrammarVocabulary, read_vocabulary

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["n"],
    "additionalProperties": False,
}
FORM = ReplyFormat(ReplyKind.JSON_SCHEMA, schema=SCHEMA)
THINK = ThinkingRules("<think>", "</think>")


@pytest.fixture(scope="module")
def model() -> Iterator[LanguageModel]:
    with crumb.load(MODELS["novella-7m"]) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def vocabulary(model: LanguageModel) -> GrammarVocabulary:
    return read_vocabulary(model.tokenizer, model.engine.plan.vocabulary)


def guide_of(
    model: LanguageModel,
    vocabulary: GrammarVocabulary,
    form: ReplyFormat | None,
    thinking: ThinkingRules | None,
) -> Guide:
    """A guide over the embedded model's tokens."""
    size = model.engine.plan.vocabulary
    guide = make_guide(model.tokenizer, vocabulary, size, form, thinking)
    assert guide is not None
    return guide


def feed(model: LanguageModel, guide: Guide, text: str) -> None:
    """A model writes this, and may; marks are tokens by themselves."""
    parts = re.split("(</?think>)", text)
    tokens = [token for part in parts for token in model.tokenizer.encode(part, special=False)]
    for token in tokens:
        allowed = guide.allowed()
        assert allowed is None or allowed[token], model.tokenizer.token_text(token)
        guide.accept(token)


def test_a_text_is_held_to_a_form_and_ends_with_it(model: LanguageModel) -> None:
    for options in ({}, {"temperature": 1.0, "seed": 3}, {"ignore_end": True}):
        generation = model.generate("Once", json_schema=SCHEMA, max_tokens=60, **options)
        assert 0 <= json.loads(generation.text)["n"] <= 99
        assert generation.finish_reason == "stop"


def test_a_form_in_all_its_spellings_is_the_same(model: LanguageModel) -> None:
    nested = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    texts = {
        model.generate("Once", max_tokens=60, **each).text
        for each in ({"json_schema": SCHEMA}, {"response_format": nested}, {"format": FORM})
    }
    assert len(texts) == 1
    assert model.generate("Once", regex="[xyz]{4}", max_tokens=9).text.strip("xyz") == ""
    assert model.generate("Once", grammar='start: "ab" "c"', max_tokens=9).text == "abc"


def test_two_forms_and_forms_that_cannot_be_are_refused(model: LanguageModel) -> None:
    with pytest.raises(UsageError, match="two forms"):
        model.generate("Once", json_schema=SCHEMA, regex="a")
    with pytest.raises(UsageError, match="cannot be held to"):
        model.generate("Once", regex="(")
    with pytest.raises(UsageError, match="no such form"):
        model.generate("Once", response_format={"type": "xml"})


def test_requests_with_and_without_a_form_share_steps_and_change_nothing(
    model: LanguageModel,
) -> None:
    from crumb.requests.generate_request import make_request

    asked = [
        make_request("Once upon", max_tokens=30),
        make_request("Once upon", max_tokens=30, json_schema=SCHEMA),
        make_request("One day", max_tokens=30, temperature=0.9, seed=4),
        make_request("One day", max_tokens=30, temperature=0.9, seed=4, regex="[a-z ]{20}"),
    ]
    alone = [model.run([request])[0].tokens for request in asked]
    assert [each.tokens for each in model.run(asked)] == alone


def test_thoughts_may_be_as_long_as_they_like_and_the_form_begins_behind_them(
    model: LanguageModel, vocabulary: GrammarVocabulary
) -> None:
    for text in ('<think>a {} b</think>\n\n{"n": 7}', '{"n": 7}', '<think></think>{"n":7}'):
        guide = guide_of(model, vocabulary, FORM, THINK)
        feed(model, guide, text)
        assert guide.is_done


def test_a_thinking_model_may_not_end_before_it_answers(
    model: LanguageModel, vocabulary: GrammarVocabulary
) -> None:
    guide = guide_of(model, vocabulary, FORM, THINK)
    feed(model, guide, "<think>a")
    allowed = guide.allowed()
    assert allowed is not None
    assert not any(allowed[token] for token in model.tokenizer.end_tokens)
    assert allowed.sum() == len(allowed) - len(model.tokenizer.end_tokens)


@given(most=st.integers(0, 12), opened=st.booleans(), has_form=st.booleans())
def test_thoughts_end_after_as_many_tokens_as_they_may_have(
    model: LanguageModel,
    vocabulary: GrammarVocabulary,
    most: int,
    opened: bool,
    has_form: bool,
) -> None:
    rules = ThinkingRules("<think>", "</think>", opened, most)
    guide = guide_of(model, vocabulary, FORM if has_form else None, rules)
    if not opened:
        feed(model, guide, "<think>")
    (word,) = model.tokenizer.encode(" the", special=False)
    thoughts, tokens = 0, []
    while guide.is_thinking:
        allowed = guide.allowed()
        forced = allowed is not None and allowed.sum() == 1
        token = int(allowed.argmax()) if allowed is not None and forced else word
        thoughts += not forced
        guide.accept(token)
        tokens.append(token)
    assert thoughts == most
    assert model.tokenizer.decode(tokens).endswith("\n</think>")


def test_a_budget_in_a_whole_generation_holds_for_thoughts_alone(model: LanguageModel) -> None:
    rules = ThinkingRules("<think>", "</think>", begins_open=True, most_tokens=5)
    generation = model.generate(
        "Once <think>", thinking=rules, json_schema=SCHEMA, max_tokens=80, stop=["{"]
    )
    thoughts, _, answer = generation.text.partition("</think>")
    assert len(model.tokenizer.encode(thoughts.rstrip("\n"), special=False)) <= 6
    assert answer.strip() == ""
    assert generation.stop_string == "{"
    generation = model.generate("Once <think>", thinking=rules, json_schema=SCHEMA, max_tokens=80)
    assert "n" in json.loads(generation.text.partition("</think>")[2])


def test_stop_strings_do_not_end_thoughts(model: LanguageModel) -> None:
    rules = ThinkingRules("<think>", "</think>", begins_open=True, most_tokens=20)
    generation = model.generate("Once <think>", thinking=rules, max_tokens=40, stop=["u", "k"])
    assert "</think>" in generation.text
    assert set("uk") & set(generation.text.partition("</think>")[0])
