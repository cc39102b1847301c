"""Settings that cannot be, texts that are too short, tokenizers that are none.

In: command lines. Out: exit 2 for a setting, 1 for a text or tokenizer; one line with the value
that was found and what was expected; nothing is left behind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import crumb, eval_line, refusal
from tiny_checkpoint import EMBEDDING, POSITIONS, make_tensors, write_checkpoint

Capsys = pytest.CaptureFixture[str]

WRONG: list[tuple[dict[str, object], list[str]]] = [
    ({"bits": 1}, ["no format has this many bits", "2, 3, 4, 5, 6, 8", "found 1"]),
    ({"bits": 7}, ["no format has this many bits", "found 7"]),
    ({"bits": 9}, ["no format has this many bits", "found 9"]),
    ({"bits": 0}, ["found 0"]),
    ({"bits": -3}, ["bits"]),
    ({"bits": 10**30}, ["bits"]),
    ({"bits": "abc"}, ["--bits", "abc"]),
    ({"bits": "3.5"}, ["--bits", "'3.5' is not a whole number"]),
    ({"bits": None}, ["Give bits"]),
    ({"embedding": 7}, ["embedding: no format has this many bits", "found 7"]),
    ({"head": 1}, ["head: no format has this many bits", "found 1"]),
    ({"group_size": 48}, ["no format has this group size", "32, 64, 128, row", "found 48"]),
    ({"group_size": 0}, ["group_size", "found 0"]),
    ({"group_size": "-1"}, ["group_size", "-1"]),
    ({"group_size": "abc"}, ["group_size", "'abc'"]),
    ({"group_size": "9" * 5000}, ["group_size"]),
    ({"group_size": "٣٢"}, ["group_size"]),
    ({"group_size": 128}, ["larger than the layer's input", "at most 64", "found 128"]),
    ({"zero": "middle"}, ["--zero", "middle"]),
    ({"method": "magic"}, ["--method", "magic"]),
    ({"scales": "best"}, ["--scales", "best"]),
    ({"damping": 0}, ["damping", "found 0"]),
    ({"damping": -1}, ["damping"]),
    ({"damping": "nan"}, ["damping", "nan"]),
    ({"damping": "inf"}, ["damping", "inf"]),
    ({"sequences": 0}, ["sequences must be at least 1", "found 0"]),
    ({"sequences": -4}, ["sequences"]),
    ({"length": 0}, ["length must be at least 1"]),
    ({"length": POSITIONS + 1}, ["context", "at most 256", "found 257"]),
    ({"seed": -1}, ["seed"]),
    ({"seed": "1e3"}, ["--seed", "'1e3' is not a whole number"]),
    ({"sequences": "3.7"}, ["--sequences", "'3.7' is not a whole number"]),
    ({"calibration": ""}, ["text"]),
    ({"calibration": "excerpt-calibration:0"}, ["weight"]),
    ({"calibration": "excerpt-calibration:nan"}, ["weight"]),
    ({"calibration": "excerpt-calibration,excerpt-calibration"}, ["twice"]),
    ({"as_published": True, "damping": 0.1}, ["as_published"]),
    ({"as_published": True, "method": "round"}, ["as_published"]),
]


@pytest.mark.parametrize(("options", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_a_setting_that_cannot_be_is_a_usage_error(
    options: dict[str, object], said: list[str], tiny: Path, refused: Any
) -> None:
    line = refused(2, tiny, **options)
    assert [words for words in said if words not in line] == []
    assert len(line) < 500


def test_a_group_may_be_as_wide_as_the_narrowest_input_and_no_wider(
    tiny: Path, refused: Any
) -> None:
    line = refused(2, tiny, group_size=128)
    assert "model.embed_tokens.weight" in line
    assert "--group-size row" in line


@pytest.mark.parametrize("length", [100, 256])
def test_a_text_shorter_than_a_sequence_is_refused(
    length: int, tiny: Path, tmp_path: Path, refused: Any
) -> None:
    (tmp_path / "short.txt").write_text("x" * (length - 1))
    line = refused(1, tiny, calibration=tmp_path / "short.txt", length=length)
    assert "shorter than one calibration sequence" in line
    assert f"at least {length} tokens" in line
    assert f"found {length - 1} tokens" in line


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty"), (b" \n\t ", "empty"), (b"caf\xe9 " * 99, "0xe9 at offset 3")],
    ids=["empty", "blank", "latin-1"],
)
def test_a_text_that_is_none_is_refused(
    content: bytes, said: str, tiny: Path, tmp_path: Path, capsys: Capsys, refused: Any
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    for line in (
        refused(1, tiny, calibration=text),
        refusal(capsys, 1, "eval", tiny, "--text", text, "--window", 8),
    ):
        assert said in line
        assert "text.txt" in line


def test_a_text_that_is_not_there_is_refused(tiny: Path, refused: Any) -> None:
    line = refused(1, tiny, calibration="excerpt-calibratoin")
    assert "Did you mean excerpt-calibration?" in line


WRONG_EVALUATIONS: list[tuple[int, list[object], list[str]]] = [
    (2, ["--window", 0], ["window_tokens", "1 or more"]),
    (2, ["--window", 1], ["nothing to score"]),
    (2, ["--window", -5], ["window_tokens", "1 or more"]),
    (2, ["--window", 257], ["longer than the model's context", "at most 256", "found 257"]),
    (2, ["--limit", 0], ["limit_windows", "1 or more"]),
    (2, ["--limit", -1], ["limit_windows", "1 or more"]),
    (2, ["--protocol", "mine"], ["gptq or llama.cpp", "mine"]),
    (2, ["--window", "long"], ["--window", "long"]),
    (2, ["--fail-if", "kl"], ["--fail-if", "'kl'"]),
    (2, ["--fail-if", "kl = 3"], ["--fail-if"]),
    (2, ["--fail-if", "speed > 3"], ["--fail-if", "perplexity, bits_per_weight"]),
    (2, ["--fail-if", "perplexity > much"], ["--fail-if"]),
    (2, ["--fail-if", "kl > 0.1"], ["kl compares two models", "--reference"]),
    (2, ["--fail-if", "top1_agreement < .9"], ["--reference"]),
    (4, ["--reference", "none-such"], ["none-such"]),
    (1, ["--text", "none-such"], ["none-such"]),
]


@pytest.mark.parametrize(("code", "more", "said"), WRONG_EVALUATIONS, ids=str)
def test_an_evaluation_that_cannot_be_is_refused(
    code: int, more: list[object], said: list[str], tiny: Path, capsys: Capsys
) -> None:
    settings: dict[object, object] = {"--text": "excerpt-evaluation", "--window": 64, "--limit": 2}
    settings |= {more[0]: more[1]}
    line = refusal(
        capsys, code, "eval", tiny, *[word for pair in settings.items() for word in pair]
    )
    assert [part for part in said if part not in line] == []


def test_a_text_shorter_than_a_window_is_refused(
    tiny: Path, tmp_path: Path, capsys: Capsys
) -> None:
    (tmp_path / "short.txt").write_text("x" * 63)
    line = refusal(capsys, 1, "eval", tiny, "--text", tmp_path / "short.txt", "--window", 64)
    assert "shorter than one window" in line
    assert "at least 64 tokens" in line
    assert "found 63 tokens" in line


def test_a_gate_that_comes_true_is_exit_3_after_the_figures(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = crumb(capsys, *eval_line(tiny, "--fail-if", "perplexity > 1"))
    assert finished.code == 3
    assert "perplexity" in finished.out
    (line,) = finished.err_lines
    assert line.startswith(f"crumb: {tiny}: perplexity is ")
    assert "--fail-if says that > 1 fails" in line


def test_a_gate_is_checked_before_the_work(tmp_path: Path, capsys: Capsys) -> None:
    """A mistyped gate must not cost an hour: it is refused before the model is even looked for."""
    refusal(capsys, 2, "eval", tmp_path / "none", "--fail-if", "kl >")


def test_models_of_different_vocabularies_are_not_compared(
    tiny: Path, tmp_path: Path, capsys: Capsys
) -> None:
    tensors = make_tensors()
    tensors[EMBEDDING] = tensors[EMBEDDING][:280]
    other = write_checkpoint(tmp_path / "other", tensors, configuration={"vocab_size": 280})
    line = refusal(capsys, 2, *eval_line(tiny, "--reference", other))
    assert "found 280, 300" in line


TOKENIZERS = {
    "empty": b"",
    "cut": b'{"version": "1.0", "model": {"type": "B',
    "list": b"[]",
    "no model": b'{"version": "1.0"}',
    "unknown model": b'{"version": "1.0", "model": {"type": "Magic"}}',
    "not utf-8": b"\xff\xfe\xfd",
}


@pytest.mark.parametrize("raw", TOKENIZERS.values(), ids=TOKENIZERS.keys())
def test_a_broken_tokenizer_is_refused_by_file(
    raw: bytes, tiny: Path, capsys: Capsys, refused: Any
) -> None:
    (tiny / "tokenizer.json").write_bytes(raw)
    for line in (refused(1, tiny), refusal(capsys, 1, *eval_line(tiny))):
        assert f"{tiny}/tokenizer.json" in line
        assert len(line) < 500


def test_a_missing_tokenizer_is_exit_4_where_text_is_needed(
    tiny: Path, capsys: Capsys, refused: Any
) -> None:
    (tiny / "tokenizer.json").unlink()
    for line in (refused(4, tiny), refusal(capsys, 4, *eval_line(tiny))):
        assert "no tokenizer in this directory" in line
        assert str(tiny) in line


def test_a_tokenizer_of_a_larger_model_is_refused(tmp_path: Path, refused: Any) -> None:
    """Bytes from 97 on would be tokens that this model does not have."""
    tensors = make_tensors()
    tensors[EMBEDDING] = tensors[EMBEDDING][:97]
    ends = {"vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2}
    line = refused(1, write_checkpoint(tmp_path / "model", tensors, configuration=ends))
    assert "a token that the model does not have" in line
