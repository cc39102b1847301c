"""Texts under a grammar are what was asked for, whatever a model would rather write."""

from __future__ import annotations

import json
import re

import jsonschema
import numpy as np
import pytest
from exhaustive import every
from unit.structure.replies import FORMATS, TOOLS, WRITERS, calls_of, content_of, parser_of

from crumb.embedded import MODELS
from crumb.errors import UsageError
from crumb.files.model_files import DirectoryFiles
from crumb.requests.reply_format import ReplyFormat, ReplyKind, read_reply_format
from crumb.structure.matcher import MOST_DIGITS, GrammarMatcher, GrammarVocabulary, read_vocabulary
from crumb.structure.tool_format import literal
from crumb.tokenizer.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(DirectoryFiles(MODELS["novella-7m"]))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> GrammarVocabulary:
    assert tokenizer.vocabulary is not None
    return read_vocabulary(tokenizer, tokenizer.vocabulary)


def write(
    tokenizer: Tokenizer, matcher: GrammarMatcher, seed: int, most_tokens: int = 4000
) -> str | None:
    """What a model that knows nothing writes; None where it finds no end."""
    random = np.random.default_rng(seed)
    tokens: list[int] = []
    while not matcher.is_done and len(tokens) < most_tokens:
        allowed = np.flatnonzero(matcher.allowed())
        ends = [token for token in allowed if token in tokenizer.end_tokens]
        token = int(ends[0] if ends and random.random() < 0.5 else random.choice(allowed))
        matcher.accept(token)
        if token in tokenizer.end_tokens:
            break
        tokens.append(token)
    return tokenizer.decode(tokens) if len(tokens) < most_tokens else None


@pytest.mark.parametrize(("name", "several"), every(FORMATS, [False, True]))
def test_a_forced_answer_is_calls_and_nothing_else(
    name: str, several: bool, tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    grammar = FORMATS[name].grammar(TOOLS, several, literal)
    schemas = {tool.name: tool.parameters for tool in TOOLS}
    written = 0
    for seed in range(8):
        matcher = GrammarMatcher(vocabulary, ReplyFormat(ReplyKind.GRAMMAR, text=grammar))
        text = write(tokenizer, matcher, seed, 1500)
        if text is None:
            continue  # chance does not find the mark at a text's end
        written += 1
        pieces = parser_of(name).feed(text)
        calls = calls_of(pieces)
        assert calls, text
        assert several or len(calls) == 1
        assert content_of(pieces).strip() == ""
        for called, arguments in calls:
            jsonschema.validate(arguments, schemas[called])
    assert written >= 4


@pytest.mark.parametrize("name", FORMATS)
def test_what_models_write_by_themselves_is_allowed_where_it_is_forced(
    name: str, tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    several = name != "harmony"
    grammar = FORMATS[name].grammar(TOOLS, several, literal)
    call = ("weather", {"city": "Ulm", "days": 3, "kinds": ["sun", "rain"]})
    for calls in [[call], [call, ("time.now", {}), ("weather", {"city": "x"})]][: 1 + several]:
        text = WRITERS[name](calls).removesuffix("<|call|>")
        matcher = GrammarMatcher(vocabulary, ReplyFormat(ReplyKind.GRAMMAR, text=grammar))
        for token in tokenizer.encode(text, special=False):
            assert matcher.try_accept(token), (name, text, tokenizer.token_text(token))
        assert matcher.may_end
        matcher.restart()
        assert not matcher.may_end


def test_an_expression_and_a_schema_are_held_to(
    tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    for seed in range(5):
        form = ReplyFormat(ReplyKind.REGEX, text=r"[a-c]{2,9}/\d{1,3}")
        text = write(tokenizer, GrammarMatcher(vocabulary, form), seed)
        assert text is not None
        assert re.fullmatch(r"[a-c]{2,9}/\d{1,3}", text)
        schema = {"type": "object", "properties": {"a": {"enum": [1, "é"]}}, "required": ["a"]}
        closed = {**schema, "additionalProperties": False}
        form = ReplyFormat(ReplyKind.JSON_SCHEMA, schema=closed)
        text = write(tokenizer, GrammarMatcher(vocabulary, form), seed)
        assert text is not None
        assert json.loads(text) in ({"a": 1}, {"a": "é"})


def test_a_number_comes_to_an_end_and_digits_that_must_be_are_written(
    tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    (one,) = tokenizer.encode("1", special=False)
    for schema in ({"type": "integer"}, {"type": "number"}):
        matcher = GrammarMatcher(vocabulary, ReplyFormat(ReplyKind.JSON_SCHEMA, schema=schema))
        count = 0
        while matcher.allowed()[one]:
            matcher.accept(one)
            count += 1
        assert count == MOST_DIGITS
        assert matcher.allowed()[sorted(tokenizer.end_tokens)].any()
    matcher = GrammarMatcher(vocabulary, ReplyFormat(ReplyKind.REGEX, text="1{60}"))
    assert write(tokenizer, matcher, 0) == "1" * 60


def test_white_space_may_stand_between_thoughts_and_an_answer_only(
    vocabulary: GrammarVocabulary, tokenizer: Tokenizer
) -> None:
    form = ReplyFormat(ReplyKind.REGEX, text="a")
    (line,) = tokenizer.encode("\n", special=False)
    assert not GrammarMatcher(vocabulary, form).try_accept(line)
    matcher = GrammarMatcher(vocabulary, form, after_thoughts=True)
    assert matcher.try_accept(line)
    assert matcher.try_accept(line)
    assert not matcher.try_accept(line)


@pytest.mark.parametrize(
    "form",
    [
        ReplyFormat(ReplyKind.JSON_SCHEMA, schema={"type": "array", "uniqueItems": True}),
        ReplyFormat(ReplyKind.JSON_SCHEMA, schema={"type": "nothing"}),
        ReplyFormat(ReplyKind.JSON_SCHEMA, schema=False),
        ReplyFormat(ReplyKind.JSON_SCHEMA, schema={"not": {"type": "string"}}),
        ReplyFormat(ReplyKind.REGEX, text="a(?=b)"),
        ReplyFormat(ReplyKind.REGEX, text="("),
        ReplyFormat(ReplyKind.GRAMMAR, text="begin: nothing"),
    ],
)
def test_what_cannot_be_held_to_is_refused(
    form: ReplyFormat, vocabulary: GrammarVocabulary
) -> None:
    with pytest.raises(UsageError, match="cannot be held to"):
        GrammarMatcher(vocabulary, form)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"type": "json_object"}, ReplyKind.JSON_OBJECT),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}, "json_schema"),
        ({"type": "json_schema", "name": "n", "schema": {}, "strict": True}, "json_schema"),
        ({"type": "regex", "regex": "a"}, ReplyKind.REGEX),
        ({"type": "grammar", "grammar": 'start: "a"'}, ReplyKind.GRAMMAR),
        ({"type": "lark", "value": 'start: "a"'}, ReplyKind.GRAMMAR),
    ],
)
def test_forms_are_read_in_all_their_shapes(value: dict[str, object], kind: ReplyKind) -> None:
    form = read_reply_format(value)
    assert form is not None
    assert form.kind == kind


@pytest.mark.parametrize(
    "value", [{"type": "xml"}, {"type": "json_schema"}, {"type": "regex"}, "json", 3, {}]
)
def test_forms_that_are_none_are_refused(value: object) -> None:
    with pytest.raises(UsageError):
        read_reply_format(value)
    assert read_reply_format({"type": "text"}) is None
