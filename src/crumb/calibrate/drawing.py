"""The calibration tokens of a model: texts drawn, chats in its template, text of its own.

In: an opened float model, what was asked of the calibration. Out: CalibrationTokens.
The default leaves out what the model writes itself where that would take long.
Refuses sequences beyond the model's context, and what texts and templates refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from crumb.calibrate.own_text import write_texts, writes, writes_readily
from crumb.errors import UsageError
from crumb.requests.quantize_request import DEFAULT_MIXTURE, Calibration
from crumb.run.model import Model
from crumb.run.source_texts import pair_tokens
from crumb.texts.dialogues import parse_dialogues, render_plainly
from crumb.texts.hub_texts import Use
from crumb.texts.mixture import (
    DIALOGUE,
    CalibrationTokens,
    ModelReading,
    check_numbers,
    draw_calibration,
    shares_of,
)
from crumb.texts.pairs import PairMarks
from crumb.texts.sources import read_text
from crumb.tokenizer.chat_template import ChatTemplate, load_chat_template


def check_draw(model: Model, asked: Calibration) -> None:
    """Refuse what cannot be drawn, before anything is read or written. Raises: UsageError."""
    check_numbers(asked.sequences, asked.length_tokens, asked.seed)
    if asked.length_tokens > model.plan.max_positions:
        raise UsageError(
            "the calibration sequences are longer than the model's context",
            expected=f"at most {model.plan.max_positions} tokens",
            found=asked.length_tokens,
        )
    shares_of(mixture_of(model, asked), asked.sequences)


def draw(model: Model, asked: Calibration) -> CalibrationTokens:
    """The calibration tokens. Raises: TextError, UsageError, DoesNotFit."""
    check_draw(model, asked)
    return draw_calibration(
        mixture_of(model, asked),
        reader_of(model),
        sequences=asked.sequences,
        length=asked.length_tokens,
        seed=asked.seed,
    )


def mixture_of(model: Model, asked: Calibration) -> str:
    """The spec that is drawn from."""
    if asked.spec != DEFAULT_MIXTURE or writes_readily(model.checkpoint):
        return asked.spec
    return "embedded"


def reader_of(model: Model) -> ModelReading:
    """What a calibration asks of a model. Raises: CheckpointError."""
    if model.plan.inputs:
        return ModelReading(
            partial(model.tokenizer.encode, special=False),
            marks=PairMarks(*pair_tokens(model.checkpoint, model.tokenizer)),
            encode_pair=model.tokenizer.encode,
        )
    template = _template(model)
    chats = parse_dialogues(read_text(DIALOGUE, Use.CALIBRATION).text, DIALOGUE)
    openings = [] if template is None else [template.render(chat[:1]) for chat in chats]
    return ModelReading(
        model.tokenizer.encode,
        render_plainly if template is None else partial(_rendered, template),
        partial(write_texts, model.checkpoint, openings) if writes(model.plan) else None,
    )


def _template(model: Model) -> ChatTemplate | None:
    try:
        return load_chat_template(model.checkpoint.files)
    except UsageError:  # it has none
        return None


def _rendered(template: ChatTemplate, messages: Sequence[dict[str, str]]) -> str:
    return template.render(messages, add_generation_prompt=False)
