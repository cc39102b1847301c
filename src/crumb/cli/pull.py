"""`crumb pull`: fetch a model from the hub, once it is known to fit; its hashes are checked.

In: a name on the hub. Out: where it lies and what was checked. Exits with 3 where nothing of it
fits, before any weight is fetched.
"""

from __future__ import annotations

from typing import Annotated

from crumb.checkpoints.huggingface.pull import pull as fetch
from crumb.cli.option_groups import ONE_WAY
from crumb.cli.output import bytes_text, log, print_json, progress_bar
from crumb.errors import DoesNotFit
from crumb.fitting.fit import fit
from crumb.fitting.report import FitReport
from crumb.progress import ProgressClock
from crumb.requests.fit_request import make_fit_request


def pull(
    model: str,
    /,
    *,
    memory: str | None = None,
    anyway: Annotated[bool, ONE_WAY] = False,
    json: Annotated[bool, ONE_WAY] = False,
) -> None:
    """Fetch a model from the hub; a download that was cut off goes on where it ended.

    Args:
        model: org/name, org/name@revision, org/name:TYPE or org/name/FILE.gguf.
        memory: such as 8GiB; by default what this process may still take, control groups included.
        anyway: fetch it though nothing of it fits.
        json: print the result as JSON.
    """
    report = fit(make_fit_request((model,), memory=memory, speed=False))
    refuse_what_does_not_fit(report, anyway)
    lying = next(row for row in report.models[0].rows if row.lies_here)
    with progress_bar() as bar:
        pulled = fetch(model, lying.file_bytes, ProgressClock(bar))
    if json:
        print_json(pulled)
        return
    print(pulled.path)
    print(f"  {pulled.files} files, {bytes_text(pulled.size_bytes)}: hashes as on the hub")


def refuse_what_does_not_fit(report: FitReport, anyway: bool) -> None:
    """Say what would run, or refuse. Raises: DoesNotFit."""
    (model,) = report.models
    best = model.best_row
    if best is None:
        smallest = min(model.rows, key=lambda row: row.memory_bytes)
        if not anyway:
            raise DoesNotFit(
                "no format of this model fits",
                where=model.model,
                expected=f"{bytes_text(smallest.memory_bytes)} for {smallest.format}",
                found=f"{bytes_text(report.memory_bytes)} by {report.memory_of}",
                do="See `crumb fit`, or fetch it with --anyway",
            )
        log(f"nothing of it fits: {smallest.format} needs {bytes_text(smallest.memory_bytes)}")
    elif not best.lies_here:
        log(f"it fits as {best.format}, once it is quantized")
