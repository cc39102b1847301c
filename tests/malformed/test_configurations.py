"""Model directories that are none, and config.json files that say nothing usable.

In: paths and configurations. Out: one line that names the file and the key, and the exit code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import eval_line, refusal
from tiny_checkpoint import CONFIGURATION

Capsys = pytest.CaptureFixture[str]


def verbs(model: object) -> list[list[object]]:
    """Commands that open a model, beside quantize."""
    return [["show", model], eval_line(model)]


def test_a_directory_that_is_not_there_is_exit_4(tmp_path: Path, refused: Any) -> None:
    line = refused(4, tmp_path / "none")
    assert f"{tmp_path}/none" in line
    assert "no model directory, GGUF file or hub name" in line


def test_a_file_is_no_model(tmp_path: Path, capsys: Capsys, refused: Any) -> None:
    (tmp_path / "model.txt").write_bytes(b"weights")
    assert "model.txt" in refused(4, tmp_path / "model.txt")
    for line in verbs(tmp_path / "model.txt"):
        refusal(capsys, 4, *line)


def test_a_pickle_is_refused_as_what_it_is(tmp_path: Path, capsys: Capsys) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    for line in verbs(tmp_path / "model.bin"):
        assert "pickle weights can run code" in refusal(capsys, 1, *line)


@pytest.mark.parametrize("name", ["", " ", "a" * 5000, "a\0b", "~nobody-of-this-name/x", "a//b"])
def test_a_name_that_cannot_be_a_model_is_exit_4(name: str, capsys: Capsys) -> None:
    line = refusal(capsys, 4, "show", name)
    assert len(line) < 500


def test_a_directory_without_configuration_is_exit_4(tiny: Path, refused: Any) -> None:
    (tiny / "config.json").unlink()
    assert f"{tiny}/config.json" in refused(4, tiny)


def test_a_configuration_that_is_a_directory_is_refused(tiny: Path, refused: Any) -> None:
    (tiny / "config.json").unlink()
    (tiny / "config.json").mkdir()
    assert f"{tiny}/config.json" in refused(1, tiny)


NO_OBJECTS = {
    "empty": b"",
    "cut": b'{"model_type": "lla',
    "list": b"[]",
    "null": b"null",
    "number": b"7",
    "not utf-8": b'{"model_type": "\xff\xfe"}',
    "text": b"model_type: llama",
    "deep list": b"[" * 200_000,
    "deep object": b'{"a":' * 200_000,
    "two objects": b"{}{}",
    "zeros": bytes(64),
}


@pytest.mark.parametrize("raw", NO_OBJECTS.values(), ids=NO_OBJECTS.keys())
def test_a_configuration_that_is_no_json_object_is_named(
    raw: bytes, tiny: Path, capsys: Capsys, refused: Any
) -> None:
    (tiny / "config.json").write_bytes(raw)
    line = refused(1, tiny)
    assert f"{tiny}/config.json" in line
    assert "JSON" in line
    assert len(line) < 400
    for verb in verbs(tiny):
        refusal(capsys, 1, *verb)


@pytest.mark.parametrize("model_type", ["perceptron", None, 7, ["llama"], "x" * 9000, "LLAMA", ""])
def test_an_unknown_family_is_told_which_there_are_and_how_to_add_one(
    model_type: object, tiny: Path, refused: Any
) -> None:
    (tiny / "config.json").write_text(json.dumps(CONFIGURATION | {"model_type": model_type}))
    line = refused(1, tiny)
    assert "one that `crumb families` lists" in line
    assert "docs/adding.md" in line
    assert str(model_type)[:20] in line
    assert len(line) < 500


BAD_VALUES = [
    ("hidden_size", 0),
    ("hidden_size", -64),
    ("hidden_size", "64"),
    ("hidden_size", 64.0),
    ("hidden_size", True),
    ("hidden_size", 2**31),
    ("num_hidden_layers", 0),
    ("num_hidden_layers", 2**62),
    ("num_hidden_layers", 10**400),
    ("num_attention_heads", 0),
    ("num_attention_heads", 5),
    ("num_key_value_heads", 3),
    ("head_dim", -16),
    ("head_dim", 15),
    ("vocab_size", None),
    ("vocab_size", 2**63),
    ("intermediate_size", 1e300),
    ("max_position_embeddings", 0),
    ("max_position_embeddings", -1),
    ("rms_norm_eps", 0),
    ("rms_norm_eps", -1e-5),
    ("rms_norm_eps", "small"),
    ("hidden_act", "softplus"),
    ("hidden_act", {}),
    ("rope_theta", 0),
    ("rope_scaling", 4),
    ("rope_scaling", {"rope_type": "spiral"}),
    ("tie_word_embeddings", "yes"),
]


ALSO_NAMED = {
    "num_attention_heads": "heads",
    "num_key_value_heads": "heads",
    "head_dim": "features to rotate",
    "rope_scaling": "rope_type",
}
"""What a message may speak of where the fault lies between several keys, or inside one."""


@pytest.mark.parametrize(("key", "value"), BAD_VALUES, ids=str)
def test_a_value_that_cannot_be_is_named_with_its_key(
    key: str, value: object, tiny: Path, refused: Any
) -> None:
    (tiny / "config.json").write_text(json.dumps(CONFIGURATION | {key: value}))
    line = refused(1, tiny)
    assert key in line or ALSO_NAMED.get(key, key) in line
    assert len(line) < 400


@pytest.mark.parametrize("raw", ["NaN", "Infinity", "1e999"])
def test_numbers_beyond_json_are_refused(raw: str, tiny: Path, refused: Any) -> None:
    text = json.dumps(CONFIGURATION).replace('"rms_norm_eps": 1e-05', f'"rms_norm_eps": {raw}')
    assert raw in text
    (tiny / "config.json").write_text(text)
    assert "config.json" in refused(1, tiny)


@pytest.mark.parametrize(
    ("key", "value"),
    [("vocab_size", 299), ("hidden_size", 128), ("intermediate_size", 97), ("head_dim", 8)],
    ids=str,
)
def test_a_configuration_of_another_model_does_not_fit_its_tensors(
    key: str, value: int, tiny: Path, refused: Any
) -> None:
    (tiny / "config.json").write_text(json.dumps(CONFIGURATION | {key: value}))
    line = refused(1, tiny)
    assert "shape" in line
    assert ".weight" in line
    assert "expected" in line
    assert "found" in line


def test_more_blocks_than_tensors_name_the_first_that_is_missing(tiny: Path, refused: Any) -> None:
    (tiny / "config.json").write_text(json.dumps(CONFIGURATION | {"num_hidden_layers": 4}))
    line = refused(1, tiny)
    assert "model.layers.3.input_layernorm.weight" in line
