"""A model says what it likes; once it opens a call, the call is one of a tool that there is."""

from __future__ import annotations

from collections.abc import Sequence

import jsonschema
import numpy as np
import pytest
from unit.structure.replies import FORMATS, TOOLS, calls_of, content_of, parser_of

from crumb.embedded import MODELS
from crumb.files.model_files import DirectoryFiles
from crumb.requests.reply_format import ReplyFormat, ReplyKind, ThinkingRules
from crumb.structure.guide import Guide, make_guide
from crumb.structure.matcher import GrammarVocabulary, read_vocabulary
from crumb.structure.tool_format import literal
from crumb.tokenizer.tokenizer import Tokenizer, load_tokenizer

BEFORE = "I shall look. "


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(DirectoryFiles(MODELS["novella-7m"]))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> GrammarVocabulary:
    assert tokenizer.vocabulary is not None
    return read_vocabulary(tokenizer, tokenizer.vocabulary)


def form_of(name: str) -> ReplyFormat:
    """Calls that may be made, in a family's format."""
    row = FORMATS[name]
    grammar = row.grammar(TOOLS, True, literal)
    return ReplyFormat(ReplyKind.GRAMMAR, text=grammar, opens=row.openings(TOOLS))


def guide_of(
    tokenizer: Tokenizer,
    vocabulary: GrammarVocabulary,
    form: ReplyFormat,
    thinking: ThinkingRules | None = None,
) -> Guide:
    assert tokenizer.vocabulary is not None
    guide = make_guide(tokenizer, vocabulary, tokenizer.vocabulary, form, thinking)
    assert guide is not None
    return guide


def say(guide: Guide, tokens: Sequence[int]) -> None:
    """What the model writes by itself, and may."""
    for token in tokens:
        allowed = guide.allowed()
        assert allowed is None or allowed[token]
        guide.accept(token)


def held(guide: Guide, tokenizer: Tokenizer, seed: int, most: int = 1500) -> list[int] | None:
    """What a model that knows nothing writes until the text is free; None without an end."""
    random = np.random.default_rng(seed)
    tokens: list[int] = []
    while (allowed := guide.allowed()) is not None:
        if len(tokens) == most:
            return None
        assert not any(allowed[end] for end in tokenizer.end_tokens), "the call is not whole"
        tokens.append(int(random.choice(np.flatnonzero(allowed))))
        guide.accept(tokens[-1])
    return tokens


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_that_was_opened_is_valid_and_what_is_around_it_is_free(
    name: str, tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    form = form_of(name)
    before = "" if name in ("llama", "harmony") else BEFORE  # there a call begins the part
    schemas = {tool.name: tool.parameters for tool in TOOLS}
    whole = 0
    for seed, mark in enumerate(form.opens * 6):
        guide = guide_of(tokenizer, vocabulary, form)
        opening = tokenizer.encode(before + mark, special=False)
        say(guide, opening)
        assert guide.allowed() is not None
        assert not guide.is_done
        rest = held(guide, tokenizer, seed)
        if rest is None:
            continue  # chance does not find the end of a text
        whole += 1
        after = tokenizer.encode("\nThat was all.", special=False)
        say(guide, after)
        assert guide.allowed() is None
        pieces = parser_of(name).feed(tokenizer.decode([*opening, *rest]))
        calls = calls_of(pieces)
        assert calls
        assert content_of(pieces).strip() == before.strip()
        for called, arguments in calls:
            jsonschema.validate(arguments, schemas[called])
    assert whole >= 2


def test_text_that_opens_no_call_is_free(
    tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    texts = ("A list: [] and <tool> and {} and ", "<tool_call", "ed by nobody. [TOOL", " {")
    for name in FORMATS:
        guide = guide_of(tokenizer, vocabulary, form_of(name))
        for text in texts:
            say(guide, tokenizer.encode(text, special=False))
            assert guide.allowed() is None


def test_an_empty_list_of_calls_is_no_call(
    tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    guide = guide_of(tokenizer, vocabulary, form_of("smollm"))
    say(guide, tokenizer.encode("<tool_call>[]</tool_call>", special=False))
    assert guide.allowed() is None


def test_a_second_call_is_held_as_the_first_is(
    tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    guide = guide_of(tokenizer, vocabulary, form_of("hermes"))
    call = '<tool_call>\n{"name": "time.now", "arguments": {}}\n</tool_call>'
    say(guide, tokenizer.encode(call, special=False))
    assert guide.allowed() is None
    say(guide, tokenizer.encode("\n<tool_call>", special=False))
    allowed = guide.allowed()
    assert allowed is not None
    assert not allowed[tokenizer.encode("7", special=False)[0]]


def test_calls_in_thoughts_are_thoughts(
    tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    thinking = ThinkingRules("<think>", "</think>")
    guide = guide_of(tokenizer, vocabulary, form_of("hermes"), thinking)
    for part in ("<think>", "I could write <tool_call> now", "</think>", "Well. "):
        say(guide, tokenizer.encode(part, special=False))
        assert guide.allowed() is None
    say(guide, tokenizer.encode("<tool_call>", special=False))
    assert guide.allowed() is not None


def test_tools_whose_schemas_cannot_be_held_to_are_not_refused(
    tokenizer: Tokenizer, vocabulary: GrammarVocabulary
) -> None:
    form = ReplyFormat(
        ReplyKind.GRAMMAR, text='start: "<tool_call>" %json {"not": {}}', opens=("<tool_call>",)
    )
    assert tokenizer.vocabulary is not None
    size = tokenizer.vocabulary
    assert make_guide(tokenizer, vocabulary, size, form, None) is None
    thinking = ThinkingRules("<think>", "</think>")
    guide = make_guide(tokenizer, vocabulary, size, form, thinking)
    assert guide is not None
    say(guide, tokenizer.encode("<tool_call>", special=False))
    assert guide.allowed() is None
