"""Windows of an evaluation text, and what a float model predicts of them, for several programs.

In: a model with its tokenizer, the name or path of a text, a number of windows. Out: Windows; a
reference pack, which is written once for a folder. Refuses what the texts and packs refuse.
"""

from __future__ import annotations

from pathlib import Path

from crumb.evaluation.reference_pack import ReferencePack, make_pack, read_pack, write_pack
from crumb.run.model import Model
from crumb.texts.hub_texts import Use
from crumb.texts.sources import read_text
from crumb.texts.windows import Windows, cut_windows


def windows_of(model: Model, text: str, limit: int | None, protocol: str = "llama.cpp") -> Windows:
    """The first windows of a text. Raises: TextError."""
    return cut_windows(
        read_text(text, Use.EVALUATION),
        model.tokenizer.encode,
        protocol=protocol,
        limit=limit,
        begin_token=model.tokenizer.begin_token,
    )


def pack_of(model: Model, text: str, limit: int, folder: Path) -> ReferencePack:
    """What the float model predicts of a text's windows. Raises: TextError, CheckpointError."""
    path = folder / f"{Path(text).stem}.{limit}.pack"
    if not path.is_file():
        exact = Model(model.checkpoint, model.as_array, keep=False)
        write_pack(make_pack(exact, windows_of(model, text, limit)), path)
    return read_pack(path)
