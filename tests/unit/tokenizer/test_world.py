"""RWKV's World vocabulary: the file, the longest token at each place, and back.

In: a small vocabulary in the file's own form: all bytes, words, emoji, Chinese. Out: tokens as a
search through all pieces gives them; texts that come back, whole and token by token.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recurrent_models import PARTS, VOCABULARY, WORDS, vocabulary_lines

from crumb.errors import CheckpointError
from crumb.files.model_files import WORLD_FILE, DirectoryFiles
from crumb.structure.matcher import read_vocabulary
from crumb.tokenizer.detokenizer import Detokenizer
from crumb.tokenizer.tokenizer import Tokenizer, load_tokenizer


def write(folder: Path, content: list[str]) -> DirectoryFiles:
    (folder / WORLD_FILE).write_text("\n".join(content) + "\n", encoding="utf-8")
    (folder / "config.json").write_text(
        f'{{"vocab_size": {VOCABULARY}, "bos_token_id": 0, "eos_token_id": 0}}'
    )
    return DirectoryFiles(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write(tmp_path_factory.mktemp("world"), vocabulary_lines()))


PIECES = {
    piece: number
    for number, piece in enumerate(
        [bytes([byte]) for byte in range(256)] + [word.encode() for word in WORDS] + list(PARTS),
        1,
    )
}


def longest(content: bytes) -> list[int]:
    """By trying every piece at every place."""
    ids = []
    while content:
        piece = max((each for each in PIECES if content.startswith(each)), key=len)
        ids.append(PIECES[piece])
        content = content[len(piece) :]
    return ids


TEXTS = st.lists(st.sampled_from([*WORDS, "t", "h", "\x00", "\x7f", "\u0e01", "👩"])).map("".join)


@given(text=TEXTS | st.text())
def test_the_longest_token_is_taken_at_each_place_and_texts_come_back(
    text: str, world: Tokenizer
) -> None:
    ids = world.encode(text)
    assert ids == longest(text.encode())
    assert world.decode(ids) == text
    growing = Detokenizer(world)
    assert "".join(growing.push(token) for token in ids) + growing.finish() == text


def test_words_emoji_and_chinese_are_tokens_as_the_file_has_them(world: Tokenizer) -> None:
    assert world.encode("then the") == [PIECES[b"then"], PIECES[b" the"]]
    assert world.encode("世界!") == [PIECES["世界".encode()], PIECES[b"!"]]
    assert world.encode("👍👩") == [PIECES["👍".encode()], PIECES[b"\xf0\x9f\x91"], PIECES[b"\xa9"]]
    assert world.token_text(PIECES[b" the"]) == " the"
    assert world.numbers(("<|endoftext|>",)) == {0}


def test_the_token_that_ends_texts_begins_them_too_and_may_be_written_out(world: Tokenizer) -> None:
    assert (world.begin_token, world.end_tokens) == (0, {0})
    ids = world.encode("the<|endoftext|>the")
    assert ids == [PIECES[b"the"], 0, PIECES[b"the"]]
    assert world.decode(ids) == "thethe"


def test_what_ends_a_turn_may_be_a_text_and_the_end_has_two_names(tmp_path: Path) -> None:
    ends = {"bos_token": "<|rwkv_tokenizer_end_of_text|>", "eos_token": "\n\n"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(ends))
    world = load_tokenizer(write(tmp_path, vocabulary_lines()))
    assert (world.begin_token, world.end_tokens) == (0, {0, PIECES[b"\n\n"]})
    assert world.encode("<|rwkv_tokenizer_end_of_text|>the") == [0, PIECES[b"the"]]


def test_texts_end_with_token_0_whatever_a_configuration_was_left_with(tmp_path: Path) -> None:
    files = write(tmp_path, vocabulary_lines())
    usual = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps(usual))
    world = load_tokenizer(files)
    assert (world.begin_token, world.end_tokens) == (0, {0, 2})


def test_a_text_can_be_held_to_a_grammar(world: Tokenizer) -> None:
    assert read_vocabulary(world, VOCABULARY).digits.sum() == 11  # ten digits and 12


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("300 'word' 5", "not a line"),
        ("300 'word'", "not a line"),
        ("300 word 4", "not a line"),
        ("300 ('w', 'o') 2", "not a line"),
        ("300 open('x') 2", "not a line"),
        ("300 '' 0", "not a line"),
        ("x 'word' 4", "not a line"),
        ("", "not a line"),
        ("7 'word' 4", "twice"),
        ("0 'word' 4", "twice"),
    ],
)
def test_a_line_that_is_none_is_refused_by_its_number(line: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=what) as caught:
        load_tokenizer(write(tmp_path, [*vocabulary_lines(), line, "301 'behind' 6"]))
    assert f"line {len(vocabulary_lines()) + 1}" in str(caught.value)


def test_lines_may_end_as_windows_ends_them(world: Tokenizer, tmp_path: Path) -> None:
    other = load_tokenizer(write(tmp_path, [f"{line}\r" for line in vocabulary_lines()]))
    assert other.encode("then 世界\r\n") == world.encode("then 世界\r\n")


def test_of_equal_pieces_the_last_counts(tmp_path: Path) -> None:
    world = load_tokenizer(write(tmp_path, [*vocabulary_lines(), "279 b'the' 3"]))
    assert world.encode("the") == [279]
    assert world.decode([279]) == "the"


def test_a_vocabulary_without_some_byte_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none for b'\\xc8'"):
        load_tokenizer(write(tmp_path, vocabulary_lines()[:200] + vocabulary_lines()[201:]))
    (tmp_path / WORLD_FILE).write_bytes(b"1 '\xff' 1\n")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        load_tokenizer(DirectoryFiles(tmp_path))
