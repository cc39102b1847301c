"""Calibration tokens of a model: its own text, its chats, and the default for small and large."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from crumb.calibrate import own_text
from crumb.calibrate.drawing import draw, mixture_of, reader_of
from crumb.calibrate.own_text import write_texts
from crumb.embedded import MODELS
from crumb.requests.quantize_options import make_quantize_request
from crumb.requests.quantize_request import Calibration
from crumb.run.model import Model, open_model

NOVELLA = MODELS["novella-7m"]
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[assistant]"


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The embedded model with a template for chats."""
    path = tmp_path_factory.mktemp("chatty") / "model"
    shutil.copytree(NOVELLA, path)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return open_model(str(path))


def test_a_model_writes_the_same_for_the_same_seed_and_begins_as_texts_begin() -> None:
    model = open_model(str(NOVELLA))
    first, again, other = (write_texts(model.checkpoint, [], 3, 20, seed) for seed in (4, 4, 5))
    assert first.shape == (3, 20)
    assert (first == again).all()
    assert len({tuple(row) for row in np.concatenate([first, other])}) == 6
    begin = model.tokenizer.begin_token
    assert begin is not None
    assert (first[:, 0] == begin).all()


def test_more_sequences_than_are_written_together_begin_with_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = open_model(str(NOVELLA)).checkpoint
    together = write_texts(checkpoint, [], 5, 12, 0)
    monkeypatch.setattr(own_text, "TOGETHER", 2)
    assert (write_texts(checkpoint, [], 5, 12, 0) == together).all()


def test_every_second_text_is_a_chat_where_the_model_has_a_template(chatty: Model) -> None:
    drawn = draw(chatty, Calibration("self", sequences=4, length_tokens=64))
    texts = [chatty.tokenizer.decode(row.tolist()) for row in drawn.tokens]
    assert [text.lstrip().startswith("[user]") for text in texts] == [False, True] * 2
    assert texts[1] != texts[3]


def test_dialogues_are_written_by_the_template(chatty: Model) -> None:
    chat = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]
    assert reader_of(chatty).render(chat) == "[user] A? [assistant] B. [assistant]"
    assert reader_of(open_model(str(NOVELLA))).render(chat) == "user: A?\n\nassistant: B.\n\n"


def test_a_large_model_writes_only_when_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(str(NOVELLA))
    default = Calibration()
    assert mixture_of(model, default) == default.spec
    monkeypatch.setattr(own_text, "LARGEST_BYTES", model.checkpoint.weight_bytes() - 1)
    assert mixture_of(model, default) == "embedded"
    assert mixture_of(model, Calibration("self")) == "self"


def test_as_published_is_calibrated_as_published() -> None:
    options = {"bits": 3, "as_published": True}
    request = make_quantize_request("m", Path("out"), **options)  # type: ignore[arg-type]
    assert request.calibration == Calibration("wikitext2", sequences=128, length_tokens=2048)
