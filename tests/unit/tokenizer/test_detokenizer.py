"""Text that comes token by token is the text of all tokens, and no part of it is taken back.

Three tokenizers: the embedded one and one trained here, both byte-level, and SentencePiece with
byte fallback. Tokens are random, so most sequences hold broken characters.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from crumb.embedded import MODELS
from crumb.files.model_files import DirectoryFiles
from crumb.tokenizer.detokenizer import CONTEXT_TOKENS, Detokenizer
from crumb.tokenizer.sentencepiece_model import convert_sentencepiece
from crumb.tokenizer.tokenizer import Tokenizer, load_tokenizer

SENTENCEPIECE = Path(__file__).parent / "tokenizer-400.model"
NAMES = ("novella", "byte-level", "byte fallback")
SMILE = [3 + value for value in "🙂".encode()]  # as bytes of the third tokenizer
TEXT = "The naïve 🙂👩‍👩‍👧 日本語 नमस्ते said: “don't”\n\n  two  spaces\t\ufffd end"


@cache
def tokenizer_named(name: str) -> Tokenizer:
    if name == "novella":
        return load_tokenizer(DirectoryFiles(Path(str(MODELS["novella-7m"]))))
    if name == "byte-level":
        return Tokenizer(trained(), frozenset({0}), None)
    return Tokenizer(convert_sentencepiece(SENTENCEPIECE), frozenset({2}), 1)


def trained() -> tokenizers.Tokenizer:
    """Byte-level pairs of a text with many scripts, so tokens end within characters."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<end>", "<turn>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT] * 3 + ["🙂🙃😀 日月火 éèê"] * 5, trainer)
    return backend


def added_reference(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """What the tokens add to the prompt's text: all decoded, less what both begin with."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *tokens])
    same = 0
    while same < min(len(before), len(whole)) and before[same] == whole[same]:
        same += 1
    return whole[same:]


def pieces_of(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.finish()]


@st.composite
def token_lists(draw: st.DrawFn, longest: int = 40) -> tuple[str, list[int]]:
    """A tokenizer and tokens of it; half of them bytes, some special, some that do not exist."""
    name = draw(st.sampled_from(NAMES))
    size = tokenizer_named(name).backend.get_vocab_size()
    one_byte = st.integers(3, 258)
    token = st.one_of(one_byte, st.integers(0, size - 1), st.sampled_from([0, 1, 2, size + 5]))
    return name, draw(st.lists(token, max_size=longest))


@settings(max_examples=150)
@given(token_lists(), st.data())
@example(("byte fallback", [*SMILE, 3 + 0xFF]), None)
@example(("byte fallback", [*SMILE * 3, 3 + 0xFF]), None)
def test_the_pieces_together_are_the_text_of_all_tokens(
    named: tuple[str, list[int]], data: st.DataObject | None
) -> None:
    name, tokens = named
    cut = data.draw(st.integers(0, len(tokens))) if data else len(tokens) - 1
    tokenizer = tokenizer_named(name)
    prompt, generated = tokens[:cut], tokens[cut:]
    expected = added_reference(tokenizer, prompt, generated)
    assert "".join(pieces_of(tokenizer, prompt, generated)) == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["any", "bytes", "continuations"])
def test_long_random_texts_survive_the_moving_window(name: str, kind: str) -> None:
    tokenizer = tokenizer_named(name)
    source = random.Random(5)
    size = tokenizer.backend.get_vocab_size()
    whole = tokenizer.backend.get_vocab()
    letters = [token for text, token in whole.items() if len(text) == 1 or text[:2] == "<0"]
    late = [token for token in letters if "�" in tokenizer.decode([token])]
    pool = {"any": range(size), "bytes": letters, "continuations": late}[kind]
    tokens = [source.choice(pool) for _ in range(2000)]
    expected = added_reference(tokenizer, tokens[:100], tokens[100:])
    assert "".join(pieces_of(tokenizer, tokens[:100], tokens[100:])) == expected


@pytest.mark.parametrize("name", NAMES)
def test_no_half_character_is_ever_shown(name: str) -> None:
    tokenizer = tokenizer_named(name)
    text = TEXT.replace("\ufffd", "")
    pieces = pieces_of(tokenizer, [], tokenizer.encode(text))
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == text
    assert len([piece for piece in pieces if piece]) > 10


def test_the_first_word_keeps_its_space_after_a_prompt_and_loses_it_at_the_start() -> None:
    tokenizer = tokenizer_named("byte fallback")
    word = tokenizer.encode("the", special=False)
    assert tokenizer.piece(word[0]) == "▁the"
    assert pieces_of(tokenizer, [], word) == ["the", ""]
    assert pieces_of(tokenizer, [1], word) == ["the", ""]  # a special token is no text
    prompt = tokenizer.encode("hello")
    assert pieces_of(tokenizer, prompt, word) == [" the", ""]
    assert pieces_of(tokenizer, [*prompt, *[1] * 2 * CONTEXT_TOKENS], word) == [" the", ""]


def test_a_character_begun_by_the_prompt_is_completed() -> None:
    tokenizer = tokenizer_named("byte-level")
    euro = [byte_token(tokenizer, value) for value in "€".encode()]
    assert pieces_of(tokenizer, euro[:2], euro[2:]) == ["€", ""]
    assert pieces_of(tokenizer, euro[:1], euro[1:2]) == ["", ""]


@pytest.mark.parametrize("text", ["🙂" * 9, "a🙂" * 9, "€b" * 9])
def test_characters_of_several_tokens_survive_the_moving_window(text: str) -> None:
    tokenizer = tokenizer_named("byte-level")
    tokens = [byte_token(tokenizer, value) for value in text.encode()]
    assert "".join(pieces_of(tokenizer, [], tokens)) == text


def test_a_window_cut_to_a_lone_space_does_not_begin_the_text_anew() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"▁a": 0, "▁": 1, "?": 2}, unk_token="?"))
    steps = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 2, 0)]
    backend.decoder = decoders.Sequence(steps)
    pieces = pieces_of(Tokenizer(backend, frozenset(), None), [], [0, 0, 0, 0, 0, 1] * 5)
    assert "".join(pieces) == " ".join(["a a a a a "] * 5)


@cache
def byte_token(tokenizer: Tokenizer, value: int) -> int:
    """The byte-level token of one byte."""
    for token in range(tokenizer.backend.get_vocab_size()):
        piece = tokenizer.piece(token)
        if piece and len(piece) == 1 and pre_tokenizer_byte(piece) == value:
            return token
    raise AssertionError(value)


def pre_tokenizer_byte(piece: str) -> int | None:
    """The byte of a byte-level character: printable bytes are themselves, others in order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in printable]
    table = {chr(value): value for value in printable}
    table |= {chr(256 + place): value for place, value in enumerate(others)}
    return table.get(piece)


def test_bytes_that_are_no_character_are_shown_at_the_end() -> None:
    fallback, level = tokenizer_named("byte fallback"), tokenizer_named("byte-level")
    assert pieces_of(fallback, [], [3 + 0xE2, 3 + 0x82]) == ["", "", "��"]
    euro = [byte_token(level, value) for value in "€".encode()]
    assert pieces_of(level, [], euro[:2]) == ["", "", "�"]


@dataclass(frozen=True)
class CountingTokenizer(Tokenizer):
    """Counts the tokens that are decoded."""

    decoded: list[int] = field(default_factory=list)

    def decode(self, tokens: Sequence[int]) -> str:
        self.decoded.append(len(tokens))
        return super().decode(tokens)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["words", "bytes", "special"])
def test_the_cost_of_a_token_does_not_grow_with_the_text(name: str, kind: str) -> None:
    original = tokenizer_named(name)
    counting = CountingTokenizer(original.backend, original.end_tokens, None)
    if kind == "special":
        tokens = [0] * 3000
    elif kind == "bytes":
        bad = 3 + 0x80 if name == "byte fallback" else byte_token(original, 0x80)
        tokens = [bad] * 3000
    else:
        tokens = (original.encode("the end of a word ", special=False) * 3000)[:3000]
    prompt = original.encode("A prompt of some length. " * 300)
    pieces_of(counting, prompt, tokens)
    # a window of up to 9 tokens, and at every second token the 1 and the 4 that it may be cut to;
    # a run of bytes once, when it ends
    most = (2 * CONTEXT_TOKENS + 1 + CONTEXT_TOKENS) * len(tokens)
    assert sum(counting.decoded) <= most
    assert len(counting.decoded) <= 2 * len(tokens) + 2


def test_the_text_of_one_token_is_for_people_to_read() -> None:
    fallback, level = tokenizer_named("byte fallback"), tokenizer_named("byte-level")
    word = fallback.encode("the", special=False)[0]
    assert fallback.token_text(word) == " the"
    assert fallback.token_text(1) == "<s>"
    assert fallback.token_text(3 + 0xE2) == "\ufffd"
    assert fallback.token_text(5000) == ""
    assert level.token_text(0) == "<end>"
