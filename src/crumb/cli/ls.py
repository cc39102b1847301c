"""`crumb ls`: the models on this machine, with size, bits, measured KL, and whether they fit.

In: folders, by default this one. Out: a table or JSON. Models of the hub's cache are listed too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from crumb.cli.option_groups import ONE_WAY
from crumb.cli.output import bytes_text, print_json, print_table
from crumb.fitting.listing import Listed, list_models


def ls(*folders: Path, json: Annotated[bool, ONE_WAY] = False) -> None:
    """List the models here: of some folders, of the hub's cache, and the one that comes with crumb.

    Args:
        folders: where to look, and one folder below; by default the current one.
        json: print the list as JSON.
    """
    listed = list_models(folders or (Path(),))
    if json:
        print_json(listed)
        return
    columns = ["<model", "<format", "size", "bits per weight", "KL", "memory", "<fits"]
    print_table(columns, [cells(each) for each in listed])


def cells(model: Listed) -> list[str]:
    """A row of the table."""
    if model.file_bytes is None or model.memory_bytes is None:
        return [model.name, model.problem or "", "", "", "", "", ""]
    return [
        model.name,
        model.format or "",
        bytes_text(model.file_bytes),
        f"{model.bits_per_weight:.2f}",
        "" if model.kl is None else f"{model.kl:.4g}",
        bytes_text(model.memory_bytes),
        "yes" if model.fits else "no",
    ]
