"""LLaMA's tokenizer.model: encodings that SentencePiece itself recorded, and files that lie.

tokenizer-400.model was trained by SentencePiece on sources of this project with LLaMA's settings;
tokenizer-400.json holds its [text, tokens, decoded text]. tests/oracle checks that record.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crumb.errors import CheckpointError
from crumb.tokenizer import sentencepiece_model
from crumb.tokenizer.scored_pieces import PieceType
from crumb.tokenizer.sentencepiece import LARGEST_FILE_BYTES, read_sentencepiece
from crumb.tokenizer.sentencepiece_model import convert_sentencepiece

MODEL = Path(__file__).parent / "tokenizer-400.model"
RECORD = json.loads(MODEL.with_suffix(".json").read_text())
BEGIN, END = 1, 2


def varint(value: int) -> bytes:
    """A protobuf integer, negative ones as 64-bit."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def run(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def piece(text: str | bytes, score: float = 0.0, kind: int = 1) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return run(1, run(1, raw) + varint(2 << 3 | 5) + struct.pack("<f", score) + number(3, kind))


SPECIAL = piece("<unk>", kind=2) + piece("<s>", kind=3) + piece("</s>", kind=3)
BPE = run(2, number(3, 2))
SPACES_KEPT = run(3, number(4, 0))
SMALL = SPECIAL + b"".join(piece(text) for text in "▁ab") + piece("ab", -1.0) + BPE + SPACES_KEPT


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("text", "tokens", "decoded"), RECORD)
def test_a_text_gets_the_tokens_that_sentencepiece_gives_it(
    text: str, tokens: list[int], decoded: str
) -> None:
    tokenizer = converted()
    assert tokenizer.encode(text).ids == [BEGIN, *tokens]
    assert tokenizer.decode([BEGIN, *tokens]) == decoded


@cache
def converted():  # type: ignore[no-untyped-def]
    return convert_sentencepiece(MODEL)


def test_begin_and_end_tokens_are_added_as_asked() -> None:
    for begin in (True, False):
        for end in (True, False):
            tokenizer = convert_sentencepiece(MODEL, add_begin=begin, add_end=end)
            tokens = tokenizer.encode("0").ids
            assert (tokens[0] == BEGIN, tokens[-1] == END) == (begin, end)
            pair = tokenizer.encode("0", "0").ids
            assert len(pair) == 2 * len(tokens)


def test_a_model_without_a_begin_token_adds_none(tmp_path: Path) -> None:
    path = write(tmp_path / "m", SMALL + run(2, number(41, -1)))
    assert convert_sentencepiece(path).encode("ab").ids == [3, 6]


def test_special_tokens_written_out_are_special() -> None:
    tokens = converted().encode("<s>0</s>").ids
    assert tokens[:2] == [BEGIN, BEGIN]
    assert tokens[-1] == END


def test_a_pair_is_merged_by_the_score_of_what_it_makes(tmp_path: Path) -> None:
    letters = b"".join(piece(text) for text in "▁abc")
    for better, tokens in (("ab", [3, 7, 6]), ("bc", [3, 4, 8])):
        scores = {"ab": -2.0, "bc": -2.0} | {better: -1.0}
        merged = b"".join(piece(text, score) for text, score in scores.items())
        path = write(tmp_path / better, SPECIAL + letters + merged + BPE + SPACES_KEPT)
        assert convert_sentencepiece(path, add_begin=False).encode("abc").ids == tokens


def test_control_and_byte_pieces_are_never_made_by_merging(tmp_path: Path) -> None:
    """Neither "<s>" itself nor a piece that would need it as a half."""
    halves = b"".join(piece(text) for text in ("▁", "<", "s", ">", "<s", "a", "<s>a"))
    path = write(tmp_path / "m", SPECIAL + halves + BPE + SPACES_KEPT)
    assert merges_of(path) == [["<", "s"]]


def merges_of(path: Path) -> list[list[str]]:
    return list(json.loads(convert_sentencepiece(path).to_str())["model"]["merges"])


def test_unknown_characters_side_by_side_are_one_unknown_token(tmp_path: Path) -> None:
    path = write(tmp_path / "m", SMALL)
    assert convert_sentencepiece(path, add_begin=False).encode("xyzab").ids == [3, 0, 6]


def test_settings_that_are_not_stored_have_their_defaults(tmp_path: Path) -> None:
    settings = read_sentencepiece(write(tmp_path / "m", SPECIAL + BPE)).settings
    assert settings["add_dummy_prefix"] == settings["remove_extra_whitespaces"] == 1
    assert (settings["bos_id"], settings["eos_id"], settings["byte_fallback"]) == (1, 2, 0)


def test_extra_spaces_go_where_the_model_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "m", SMALL + run(3, number(4, 1)))
    tokenizer = convert_sentencepiece(path, add_begin=False)
    assert tokenizer.encode("  ab   b ").tokens == ["▁", "ab", "▁", "b"]


def test_no_dummy_prefix_where_the_model_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "m", SMALL + run(3, number(3, 0)))
    tokenizer = convert_sentencepiece(path, add_begin=False)
    assert tokenizer.encode("ab b").tokens == ["ab", "▁", "b"]
    assert tokenizer.decode(tokenizer.encode(" ab").ids) == " ab"


def test_fields_that_do_not_matter_are_skipped(tmp_path: Path) -> None:
    extra = number(90, 5) + run(91, b"x") + varint(92 << 3 | 5) + b"1234" + varint(93 << 3 | 1)
    path = write(tmp_path / "m", extra + b"12345678" + SMALL)
    assert read_sentencepiece(path) == read_sentencepiece(write(tmp_path / "n", SMALL))


TRUNCATED = SMALL[:-3]
REFUSED = {
    "an empty file": (b"", "byte-pair encoding"),
    "a text file": (b"<html>not found</html>", "no such wire type|past the end|another type"),
    "an integer of eleven bytes": (b"\xff" * 11, "byte 0: an integer does not end"),
    "an integer cut off": (SMALL + b"\x80", "an integer does not end"),
    "a group": (b"\x0b" + SMALL, "byte 0: no SentencePiece model: no such wire type"),
    "a length of 2^31": (b"\x0a" + varint(2**31), r"at most 0 bytes, found 2147483648 bytes"),
    "a length of 2^32": (b"\x0a" + varint(2**32), "past the end"),
    "a length of 2^63": (b"\x0a" + varint(2**63), "past the end"),
    "a length of 2^64 - 1": (b"\x0a" + varint(2**64 - 1), "past the end"),
    "a fixed field cut off": (SMALL + varint(90 << 3 | 1) + b"1234567", "past the end"),
    "a piece that claims more": (run(1, b"\x0a\x7fa") + SMALL, "byte 2: a field reaches past"),
    "pieces stored as numbers": (number(1, 5), "the field pieces is stored as another type"),
    "a score stored as a number": (run(1, run(1, b"a") + number(2, 5)), "the field score"),
    "settings stored as bytes": (run(2, run(3, b"\x02")), "the field model_type"),
    "an empty piece": (piece(""), "a piece is empty or too long"),
    "a piece without text": (run(1, number(3, 1)), "a piece is empty or too long"),
    "a piece of 513 characters": (piece("a" * 513), "1 to 512 characters, found 513"),
    "a piece that is not UTF-8": (piece(b"\xff\xfe"), "a piece is not UTF-8"),
    "a piece that is there twice": (SMALL + piece("a"), "a piece is there twice"),
    "a score that is no number": (piece("z", float("nan")), "a score is not finite"),
    "an infinite score": (piece("z", float("-inf")), "a score is not finite"),
    "a type that is none": (piece("z", kind=7), "pieces of this type"),
    "a negative type": (piece("z", kind=-1), "pieces of this type"),
    "a piece of the user": (SMALL + piece("<x>", kind=4), "pieces of this type.*save_pretrained"),
    "a unigram model": (SPECIAL + run(2, number(3, 1)), "byte-pair encoding.*save_pretrained"),
    "a normalization table": (SMALL + run(3, run(2, b"abc")), "precompiled_charsmap of 3 bytes"),
    "spaces behind words": (SMALL + run(2, number(24, 1)), "spaces in front of words"),
    "spaces that stay spaces": (SMALL + run(3, number(5, 0)), "spaces written as ▁"),
    "no unknown piece": (piece("a") + BPE, "one unknown piece"),
    "two unknown pieces": (SMALL + piece("<unk2>", kind=2), "one unknown piece"),
    "byte fallback without bytes": (SMALL + run(2, number(35, 1)), "256 pieces.*found 0"),
    "bytes without byte fallback": (SMALL + piece("<0x00>", kind=6), "byte pieces do not agree"),
    "a begin token beyond the pieces": (SMALL + run(2, number(41, 7)), "bos_id is no control"),
    "a begin token of 2^31": (SMALL + run(2, number(41, 2**31)), "bos_id is no control piece"),
    "a begin token below -1": (SMALL + run(2, number(41, -2)), "bos_id is no control piece"),
    "an end token that is a letter": (SMALL + run(2, number(42, 4)), "eos_id is no control piece"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_not_what_it_claims_is_refused(tmp_path: Path, case: str) -> None:
    content, words = REFUSED[case]
    path = write(tmp_path / "tokenizer.model", content)
    with pytest.raises(CheckpointError, match=words) as caught:
        convert_sentencepiece(path)
    assert "tokenizer.model" in str(caught.value)


def test_the_byte_pieces_must_be_the_256_bytes(tmp_path: Path) -> None:
    names = [f"<0x{byte:02X}>" for byte in range(255)] + ["<0x-1>"]
    content = SMALL + b"".join(piece(name, kind=PieceType.BYTE) for name in names)
    with pytest.raises(CheckpointError, match="byte pieces do not agree"):
        convert_sentencepiece(write(tmp_path / "m", content + run(2, number(35, 1))))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        convert_sentencepiece(tmp_path / "nothing")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(LARGEST_FILE_BYTES + 1)
    with pytest.raises(CheckpointError, match="too large for a tokenizer"):
        convert_sentencepiece(tmp_path / "huge")


def test_pieces_that_merge_in_too_many_ways_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentencepiece_model, "MOST_MERGES", 10)
    for length, merges in ((5, 10), (6, 15)):  # "a" * n is split in n - 1 ways
        pieces = b"".join(piece("a" * size) for size in range(1, length + 1))
        path = write(tmp_path / f"m{length}", SPECIAL + pieces + BPE + SPACES_KEPT)
        if merges <= 10:
            assert len(merges_of(path)) == merges
        else:
            with pytest.raises(CheckpointError, match="more than 10 merges"):
                convert_sentencepiece(path)


def test_nothing_is_allocated_on_a_claimed_size(tmp_path: Path) -> None:
    path = write(tmp_path / "m", SMALL + b"\x0a" + varint(2**40))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="past the end"):
            convert_sentencepiece(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20  # the file has some 100 bytes, the claim is a million times a MiB


@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=4),
    kept=st.integers(0, 10**6),
)
@example(flips=[], kept=10**6)
def test_no_damage_gets_past_the_checks_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]], kept: int
) -> None:
    """Bytes flipped, the file cut: it still reads and encodes, or it is a CheckpointError."""
    damaged = bytearray(MODEL.read_bytes())
    for place, mask in flips:
        damaged[place % len(damaged)] ^= mask
    # Half of the drawn lengths keep the whole file, so that flips alone are tried too.
    damaged = damaged[: kept % (2 * len(damaged))]
    path = write(tmp_path_factory.mktemp("m") / "m", bytes(damaged))
    try:
        tokenizer = convert_sentencepiece(path)
    except CheckpointError:
        return
    tokenizer.decode(tokenizer.encode("a 1\n🙂 ▁▁").ids)


@pytest.mark.parametrize("kept", range(len(SMALL)))
def test_a_small_model_cut_anywhere_is_refused_or_read(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path / "m", SMALL[:kept])
    try:
        read_sentencepiece(path)
    except CheckpointError:
        return
    # Cut between two fields a file is whole; then only the last settings may be missing.
    assert SMALL[:kept].endswith(BPE)
