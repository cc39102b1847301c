"""A budget becomes a format for each matrix: by the plan that lies there, or a new one.

In: a model, a QuantizeRequest with a budget or the file of a plan. Out: a FormatPlan, written
beside the output, and the request with the format of every matrix. What the pass behind it learned
lies beside the output too, so that another budget takes seconds.
Refuses plans of another model, and quantizations that budgets do not reach.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import msgspec

from crumb import __version__
from crumb.architectures.plan import Plan, Stage
from crumb.calibrate.drawing import draw
from crumb.calibrate.token_weights import check_decoder
from crumb.errors import CrumbError, UsageError
from crumb.evaluation.reference_pack import PACK, make_pack, read_pack, write_pack
from crumb.fitting.allocation import (
    FormatPlan,
    Refine,
    check_budget,
    plan_formats,
    read_plan,
    write_plan,
)
from crumb.fitting.bundles import bundles_of
from crumb.fitting.ladder import ladder
from crumb.fitting.rehearsal import Rehearsal
from crumb.fitting.sensitivity import (
    GRADIENTS,
    Losses,
    SensitivityPass,
    pass_work,
    read_losses,
    write_losses,
)
from crumb.fitting.stage_cost import stage_work
from crumb.fitting.swapping import held_out, planning_cost, refining
from crumb.formats.catalog import parse_format
from crumb.machine.memory import resident_bytes
from crumb.progress import CostListener, ProgressClock, ProgressListener
from crumb.requests.quantize_request import Calibration, QuantizeRequest, matrices_of, named_formats
from crumb.run.model import Model
from crumb.texts.mixture import OWN, CalibrationTokens

TABLE, REHEARSAL = "losses.json", "rehearsal"

Draw = Callable[[], CalibrationTokens]


def plan_of(
    model: Model,
    request: QuantizeRequest,
    drawn: Draw,
    progress: ProgressListener,
    cost: CostListener,
) -> FormatPlan:
    """The plan that the request names, or that an earlier run wrote for it, or a new one.

    `cost` is told before long work begins.
    """
    if request.from_plan is not None:
        return _of_this(read_plan(request.from_plan), model, request.from_plan)
    if request.budget is None:
        raise UsageError(
            "nothing to plan without a budget", do="Give memory, bits_per_weight or file_size"
        )
    check_decoder(model.plan)
    resident = resident_bytes()
    named = named_formats(model.plan, request)
    check_reached(model.plan, set(named))
    pass_key = key_of(model, request)
    key = pass_key | {"tensors": [list(pair) for pair in request.tensor]}
    path = plan_path(request.out)
    earlier = _earlier(path)
    if earlier is not None and (earlier.key, earlier.budget) == (key, request.budget):
        return earlier
    check_budget(model.checkpoint, request.budget, named, resident, request.settings)
    tell_cost(model, request, pass_key, cost)
    losses = losses_of(model, request, pass_key, drawn, progress)
    refine = None
    if request.budget.swaps:
        refine = _refining(model, request, pass_key, drawn, progress)
    made = plan_formats(model.checkpoint, losses, request.budget, named, resident, key, refine)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_plan(path, made)
    return made


def tell_cost(
    model: Model, request: QuantizeRequest, key: dict[str, object], cost: CostListener
) -> None:
    """What finding the formats takes, unless it was found before."""
    assert request.budget is not None, "one that is to be planned"
    swaps, asked = request.budget.swaps, request.calibration
    passes = read_losses(sensitivity_folder(request, key) / TABLE, key) is None
    if passes or swaps:
        shape = (asked.sequences, asked.length_tokens)
        cost(planning_cost(model.checkpoint, shape, request.settings, passes, swaps))


def plan_path(out: Path) -> Path:
    """Where the plan of an output lies."""
    return out.with_name(out.name + ".plan.json")


def sensitivity_folder(request: QuantizeRequest, key: dict[str, object]) -> Path:
    """Where the pass of a model and its calibration lies, beside the output."""
    digest = hashlib.sha256(msgspec.json.encode(key, order="sorted")).hexdigest()[:8]
    name = Path(request.model.partition("@")[0]).name or "model"
    return request.out.with_name(f"{name}.sensitivities-{digest}")


def gradients_folder(model: Model, request: QuantizeRequest) -> Path | None:
    """Of the pass that weighs tokens, whose result the quantization reads again."""
    folder = sensitivity_folder(request, key_of(model, request)) / GRADIENTS
    return folder if folder.exists() else None


def key_of(model: Model, request: QuantizeRequest) -> dict[str, object]:
    """What decides the losses."""
    solve = {name: value for name, value in asdict(request.solve).items() if value is not None}
    return {
        "crumb": __version__,
        "source_sha256": model.checkpoint.sha256(),
        "calibration": asdict(request.calibration),
        "solve": solve,
        "formats": [format.name for format in ladder(request.settings)],
        "next_tokens": "drawn",
    }


def losses_of(
    model: Model,
    request: QuantizeRequest,
    key: dict[str, object],
    drawn: Draw,
    progress: ProgressListener,
) -> Losses:
    """What each format of each matrix costs: read, or found by the pass."""
    folder = sensitivity_folder(request, key)
    losses = read_losses(folder / TABLE, key)
    if losses is not None:
        return losses
    tokens = drawn().tokens
    total, clock, done = pass_work(model.plan, tokens.shape), ProgressClock(progress), 0.0

    def told(stage: Stage, passes: float) -> None:
        nonlocal done
        done += passes * stage_work(stage, tokens.size, tokens.shape[1])
        clock(min(done / total, 1.0), f"{stage.name}, sensitivities")

    losses = SensitivityPass(model.checkpoint, tokens, request.settings, folder).run(told)
    write_losses(folder / TABLE, key, losses)
    return losses


def _refining(
    model: Model,
    request: QuantizeRequest,
    key: dict[str, object],
    drawn: Draw,
    progress: ProgressListener,
) -> Refine:
    """What measures mixes of the model, and tries swaps."""
    assert request.budget is not None, "asked for by the budget"
    folder = sensitivity_folder(request, key)
    tokens, settings, clock = drawn().tokens, request.settings, ProgressClock(progress)
    weights = None
    if settings.weighs_tokens:
        weights = SensitivityPass(model.checkpoint, tokens, settings, folder).weights()
    path = folder / REHEARSAL / PACK
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        calibration = held_out_calibration(request.calibration)
        windows = held_out(draw(model, calibration), calibration.spec)
        write_pack(make_pack(Model(model.checkpoint, model.as_array, keep=False), windows), path)
    rehearsal = Rehearsal(
        model.checkpoint, tokens, settings, weights, folder / REHEARSAL, read_pack(path)
    )
    return refining(rehearsal, request.budget.swaps, lambda doing: clock(0.0, doing))


def held_out_calibration(asked: Calibration) -> Calibration:
    """Other sequences of the same texts, without what the model writes itself."""
    parts = [part for part in asked.spec.split(",") if part.strip().partition(":")[0] != OWN]
    spec = ",".join(parts) or asked.spec
    return replace(asked, spec=spec, seed=asked.seed + 1)


def with_plan(plan: Plan, request: QuantizeRequest, formats: FormatPlan) -> QuantizeRequest:
    """The request with every matrix named; what most bytes lie in stands for the blocks."""
    names = {each.tensor: each.format for each in formats.matrices}
    matrices = matrices_of(plan)
    pairs = [(name, names.get(name, "float")) for name in matrices]
    sizes: Counter[str] = Counter()
    for each in formats.matrices:
        sizes[each.format] += each.size_bytes
    usual = parse_format(sizes.most_common(1)[0][0])
    return replace(
        request,
        budget=None,
        from_plan=None,
        bits=usual.bits,
        group_size=usual.group_size,
        zero=usual.zero,
        codes=usual.row.kind,
        tensor=tuple(pairs),
    )


def check_reached(plan: Plan, named: set[str]) -> None:
    """Refuse a budget for matrices whose losses no pass finds. Raises: UsageError."""
    reached = {spec.name for bundle in bundles_of(plan) for spec in bundle.matrices}
    others = [name for name in matrices_of(plan) if name not in reached | named]
    if others:
        raise UsageError(
            "a budget does not reach these matrices yet",
            where=f"{others[0]} and {len(others) - 1} more" if others[1:] else others[0],
            do="Decide them by tensor={PATTERN: FORMAT}, or --tensor PATTERN=FORMAT",
        )


def _of_this(formats: FormatPlan, model: Model, path: Path) -> FormatPlan:
    source = model.checkpoint.sha256()
    if formats.key.get("source_sha256") != source:
        raise UsageError(
            "the plan is of another model",
            where=path,
            expected=f"source_sha256 {source}",
            found=str(formats.key.get("source_sha256"))[:80],
        )
    return formats


def _earlier(path: Path) -> FormatPlan | None:
    try:
        return read_plan(path)
    except CrumbError:
        return None
