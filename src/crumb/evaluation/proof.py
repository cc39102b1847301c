"""Proof that goes with a quantized model: its reference pack, and what it cost measured on that.

In: a float model and the directory of its quantized one. Out: the file beside the weights, and
"measured" in the manifest. The text is embedded, so that anyone measures the same.
Refuses what the executors refuse; a model without a tokenizer gets no pack.
"""

from __future__ import annotations

from pathlib import Path

from crumb.checkpoints.crumb.manifest import MeasuredRecord
from crumb.checkpoints.crumb.reader import MANIFEST
from crumb.checkpoints.opening import open_checkpoint
from crumb.errors import CrumbError
from crumb.evaluation.comparison import evaluate_on_pack
from crumb.evaluation.execution import Execution
from crumb.evaluation.pair_windows import cut_pair_windows
from crumb.evaluation.reference_pack import PACK, ReferencePack, make_pack, write_pack
from crumb.files.atomic_file import write_json
from crumb.files.model_files import read_json
from crumb.requests.evaluate_request import EvaluateRequest
from crumb.run.model import Model
from crumb.texts.hub_texts import Use
from crumb.texts.sources import read_text
from crumb.texts.windows import Windows, cut_windows

TEXT = "excerpt-evaluation"
WINDOWS, WINDOW_TOKENS = 8, 512
"""Of the text that is measured: some thousand positions."""

SPAN_WINDOWS = 32
"""Of a model that reads a source, where a fifth of a window is scored."""


def prove(source: Model, directory: Path) -> None:
    """Write the pack of a float model beside its quantized one, and what that cost.

    Raises: CheckpointError, UsageError, DoesNotFit.
    """
    pack = pack_of(source)
    if pack is None:
        return
    write_pack(pack, directory / PACK)
    evaluation = evaluate_on_pack(Model(open_checkpoint(directory)), directory / PACK, Execution())
    assert evaluation.divergence is not None, "a pack is a reference"
    compared = evaluation.divergence
    measured = MeasuredRecord(
        evaluation.text,
        compared.kl.value,
        compared.kl.standard_error,
        compared.perplexity_ratio.value,
        compared.top1_agreement.value,
        evaluation.bits_per_byte,
    )
    write_json(directory / MANIFEST, read_json(directory / MANIFEST) | {"measured": measured})


def pack_of(source: Model) -> ReferencePack | None:
    """The pack of a float model; None where it reads no text. Raises: CheckpointError."""
    try:
        windows = _windows(source)
    except CrumbError:  # no tokenizer, or one that whoever needs it is told of
        return None
    return make_pack(Model(source.checkpoint, source.as_array, keep=False), windows)


def _windows(source: Model) -> Windows:
    """Of the text; where an encoder reads, with spans left out, which are scored.

    Raises: UsageError, TextError, CheckpointError.
    """
    text, length = read_text(TEXT, Use.EVALUATION), min(WINDOW_TOKENS, source.plan.max_positions)
    if source.plan.inputs:
        asked = EvaluateRequest(TEXT, window_tokens=length, limit_windows=SPAN_WINDOWS)
        (windows,) = cut_pair_windows(source, text, asked)
        return windows
    tokenizer = source.tokenizer
    return cut_windows(
        text,
        tokenizer.encode,
        length=length,
        limit=WINDOWS,
        begin_token=tokenizer.begin_token,
    )
