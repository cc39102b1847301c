"""T5 in GGUF files: written and read back, the same model and the same tokens.

In: tiny models with a Unigram tokenizer. Out: equal plans, logits and answers; what llama.cpp's t5
has no key for is refused in one line.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_models import write_source_model
from tiny_models import make_sources, make_tokens
from trained_tokenizers import texts

import crumb
from crumb.checkpoints.gguf.container import read_gguf
from crumb.checkpoints.gguf.model import gguf_model_of
from crumb.checkpoints.gguf.tokenizer.unigram import unigram_characters
from crumb.checkpoints.gguf.writer import encode_plain, write_gguf
from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import UsageError
from crumb.run.model import Model
from crumb.tokenizer.tokenizer import load_tokenizer

FARTHEST = {"relative_attention_max_distance": 128}


def written(source: Path, out: Path) -> Path:
    """The model as a GGUF file of floats."""
    checkpoint = open_checkpoint(source)
    types = {spec.name: "F32" for spec in checkpoint.plan.tensors() if spec.matrix}
    write_gguf(checkpoint, out, types, encode_plain(checkpoint), "t5")
    return out


@pytest.mark.parametrize("variant", ["t5", "t5-gated"])
def test_a_file_holds_the_same_model_and_tokenizer(variant: str, tmp_path: Path) -> None:
    source = write_source_model(tmp_path / "m", variant, **FARTHEST)
    before, after = open_checkpoint(source), open_checkpoint(written(source, tmp_path / "m.gguf"))
    assert before.plan == after.plan
    tokens, sources = (make(before.configuration) for make in (make_tokens, make_sources))
    logits = [Model(each).logits(tokens, {"source": sources}) for each in (before, after)]
    np.testing.assert_array_equal(*logits)
    ours, theirs = (load_tokenizer(each.files) for each in (before, after))
    assert ours.end_tokens == theirs.end_tokens == {1}
    for text in [*texts("<extra_id_0>", "<extra_id_99>"), " two  spaces "]:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(ours.encode(text))
    keys = read_gguf(tmp_path / "m.gguf").metadata.values
    assert keys["t5.decoder_start_token_id"] == 0
    assert keys["tokenizer.ggml.model"] == "t5"
    assert keys.get("t5.decoder_block_count", 2) == (3 if variant == "t5" else 2)


def test_an_answer_is_the_same_from_either_file(tmp_path: Path) -> None:
    source = write_source_model(tmp_path / "m", **FARTHEST)
    file = written(source, tmp_path / "m.gguf")
    answers = []
    for path in (source, file):
        with crumb.load(path, threads=1) as model:
            answers.append(model.generate("Where is the captain?", max_tokens=9).tokens)
            answers.append(model.chat([{"role": "user", "content": "no"}], max_tokens=3).tokens)
    assert answers[:2] == answers[2:]


def test_eight_bits_of_a_file_stay_near_the_float_model(tmp_path: Path) -> None:
    wide = {"d_model": 64, "d_ff": 96, "d_kv": 32, "num_heads": 2}
    source = write_source_model(tmp_path / "m", **FARTHEST, **wide)
    file = tmp_path / "m.gguf"
    crumb.export(source, file, "gguf", type="q8_0")
    asked: dict[str, Any] = {"text": "excerpt-evaluation", "window_tokens": 96, "limit_windows": 3}
    evaluation = crumb.evaluate(str(file), str(source), **asked)
    assert evaluation.divergence is not None
    assert 0 < evaluation.divergence.kl.value < 0.02


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"relative_attention_max_distance": 50}, "t5 cannot express this model"),
        ({"feed_forward_proj": "gated-silu"}, "activation relu or gelu_new"),
        ({"feed_forward_proj": "gated-relu"}, "t5 cannot express this model"),
        ({"model_type": "umt5"}, "does not load this family"),
    ],
)
def test_what_the_architecture_has_no_key_for_is_refused(
    changed: dict[str, Any], told: str, tmp_path: Path
) -> None:
    source = write_source_model(tmp_path / "m", **(FARTHEST | changed))
    with pytest.raises(UsageError, match=told) as caught:
        gguf_model_of(open_checkpoint(source).configuration)
    assert "\n" not in str(caught.value)


def test_a_compiled_normal_form_is_kept_byte_for_byte() -> None:
    raw = bytes(range(256))
    form = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(raw).decode()}
    joins = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    for normalizer in (form, {"type": "Sequence", "normalizers": [form, joins]}):
        characters = unigram_characters({"normalizer": normalizer}, "here", "do")
        assert characters.tobytes() == raw
    assert not len(unigram_characters({"normalizer": None}, "here", "do"))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("normalizer", {"type": "NFKC"}, "normal form"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "!"}, "compiled|read"),
        ("pre_tokenizer", {"type": "Whitespace"}, "splits texts"),
    ],
)
def test_a_unigram_tokenizer_that_gguf_has_no_words_for_is_refused(
    name: str, value: dict[str, Any], told: str, tmp_path: Path
) -> None:
    source = write_source_model(tmp_path / "m", **FARTHEST)
    content = json.loads((source / "tokenizer.json").read_text())
    (source / "tokenizer.json").write_text(json.dumps(content | {name: value}))
    with pytest.raises(crumb.CrumbError, match=told):
        written(source, tmp_path / "m.gguf")
