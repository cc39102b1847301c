"""`crumb quantize`: a checkpoint to fewer bits.

In: a model and settings. Out: a crumb directory, and a summary of what it cost in bytes and error.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from crumb.cli.option_groups import CALIBRATION, FORMAT, ONE_WAY, OUTPUT, SOLVER
from crumb.cli.output import bytes_text, duration_text, log, print_json, progress_bar
from crumb.cli.whole_number import WHOLE, OptionalWhole, Whole
from crumb.errors import UsageError
from crumb.exporting import model_name
from crumb.fit.quantize_cost import Cost
from crumb.formats.catalog import ROW, ZeroKind
from crumb.pipeline import Calibration, Listener, QuantizeRequest, QuantizeResult
from crumb.pipeline import quantize as run_quantize
from crumb.solve.problem import AS_PUBLISHED, Method, Scales, SolveSettings
from crumb.texts.mixture import PUBLISHED_LENGTH, PUBLISHED_SEQUENCES

NAMES_SHOWN = 3
"""Tensors that are named for each reason of a fallback."""


def quantize(
    model: str,
    /,
    *,
    bits: Annotated[OptionalWhole, FORMAT] = None,
    target: Annotated[str | None, Parameter(name="--for"), FORMAT] = None,
    out: Annotated[Path | None, OUTPUT] = None,
    group_size: Annotated[str | None, FORMAT] = None,
    zero: Annotated[ZeroKind | None, FORMAT] = None,
    method: Annotated[Method, SOLVER] = Method.GPTQ,
    scales: Annotated[Scales | None, SOLVER] = None,
    act_order: Annotated[bool, SOLVER] = True,
    damping: Annotated[float | None, SOLVER] = None,
    as_published: Annotated[bool, SOLVER, ONE_WAY] = False,
    embedding: Annotated[str | None, FORMAT] = None,
    head: Annotated[str | None, FORMAT] = None,
    tensor: Annotated[list[str] | None, FORMAT, ONE_WAY] = None,
    calibrate: Annotated[str, CALIBRATION] = "wikitext2",
    sequences: Annotated[OptionalWhole, CALIBRATION] = None,
    length: Annotated[OptionalWhole, CALIBRATION] = None,
    seed: Annotated[Whole, CALIBRATION] = 0,
    strict: Annotated[bool, SOLVER, ONE_WAY] = False,
    restart: Annotated[bool, OUTPUT, ONE_WAY] = False,
    json: Annotated[bool, OUTPUT, ONE_WAY] = False,
) -> None:
    """Quantize a checkpoint; a run that was stopped continues when the command is repeated.

    Args:
        model: directory, .gguf file, org/name, or org/name@revision.
        bits: bits of each code: 2, 3, 4, 5, 6 or 8; gguf:TYPE says it by itself.
        target: the file to export to later, without any change: gguf:TYPE or gptq.
        out: output directory; default is the model's name with the format behind it.
        group_size: weights that share a scale: 32, 64, 128 (default) or row.
        zero: fixed (2^(bits-1), default), variable (an integer per group) or minimum (a float).
        method: gptq, or round (to nearest, no calibration).
        scales: search (weighted by H; default for gptq) or minmax (default for round).
        act_order: choose columns by descending diagonal of H.
        damping: share of H's mean diagonal; default follows tokens per column, .01 to .1.
        as_published: as GPTQ's paper ran it: 128 x 2048 tokens, damping .01, minmax, no act-order.
        embedding: bits (default 8; 6 and below are solved too), a GGUF type, a format or float.
        head: likewise, unless it is tied to the embedding.
        tensor: PATTERN=FORMAT for some matrices, as often as needed, the last that matches counts.
        calibrate: texts as NAME or FILE, several with weights: wikitext2:64,code.txt:32.
        sequences: calibration sequences (default 64).
        length: tokens of each (default 512).
        seed: of the draw of sequences.
        strict: fail where a tensor would need a fallback.
        restart: replace what a different command left in the output directory.
        json: print the result as JSON.
    """
    target = target and target.lower()
    settings = choose_settings(method, scales, act_order, damping, as_published, strict)
    group, kind = choose_grouping(group_size, zero, target)
    request = QuantizeRequest(
        model=model,
        out=out or default_out(model, bits, group, kind, target),
        bits=bits,
        group_size=parse_group_size(group),
        zero=kind,
        solve=settings,
        calibration=choose_calibration(calibrate, seed, as_published, sequences, length),
        restart=restart,
        target=target,
        tensors=tuple(parse_tensor(word) for word in tensor or ()),
        **stage_settings("embedding", embedding, target),
        **stage_settings("head", head, target),
    )
    result = run_shown(request)
    print_json(summary(result)) if json else print_summary(result)


def run_shown(request: QuantizeRequest) -> QuantizeResult:
    """Quantize, with the cost and a bar on stderr."""
    with progress_bar() as bar:
        listener = Listener(
            cost=lambda cost: log(cost_line(cost)),
            progress=lambda step: bar(step.done / step.total, step.doing),
        )
        try:
            return run_quantize(request, listener)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt("the same command continues where it stopped") from error


def choose_calibration(
    spec: str, seed: int, as_published: bool, sequences: int | None, length: int | None
) -> Calibration:
    """The calibration from flags."""
    given = Calibration(spec=spec, seed=seed)
    if as_published:
        given = replace(given, sequences=PUBLISHED_SEQUENCES, length_tokens=PUBLISHED_LENGTH)
    return replace(
        given,
        sequences=given.sequences if sequences is None else sequences,
        length_tokens=given.length_tokens if length is None else length,
    )


def choose_grouping(
    group_size: str | None, zero: ZeroKind | None, target: str | None
) -> tuple[str, ZeroKind]:
    """Group size and zero from flags. Raises: UsageError where the target says them."""
    if target not in (None, "gptq") and (group_size, zero) != (None, None):
        raise UsageError(
            "the target already says how weights are grouped",
            where="--for",
            found=target,
            do="Drop --group-size and --zero",
        )
    return group_size or "128", zero or ZeroKind.FIXED


def choose_settings(
    method: Method,
    scales: Scales | None,
    act_order: bool,
    damping: float | None,
    as_published: bool,
    strict: bool,
) -> SolveSettings:
    """Solver settings from flags. Raises: UsageError where two contradict."""
    if as_published:
        if (method, scales, act_order, damping) != (Method.GPTQ, None, True, None):
            raise UsageError(
                "--as-published already says how to solve",
                do="Drop --method, --scales, --act-order and --damping, or --as-published",
            )
        return replace(AS_PUBLISHED, strict=strict)
    if damping is not None and not 0 < damping <= 1:
        raise UsageError("damping is out of range", expected="above 0, at most 1", found=damping)
    by_default = Scales.MINMAX if method is Method.ROUND else Scales.SEARCH
    return SolveSettings(
        method=method,
        scales=scales or by_default,
        act_order=act_order,
        damping=damping,
        strict=strict,
    )


def parse_group_size(text: str) -> int:
    """A group size from the command line. Raises: UsageError."""
    if text == "row":
        return ROW
    if text.isascii() and text.isdecimal() and len(text) < 8 and int(text) > 0:
        return int(text)
    raise UsageError(
        "not a group size", where="--group-size", expected="a number or row", found=repr(text[:40])
    )


def parse_tensor(word: str) -> tuple[str, str]:
    """Pattern and format from PATTERN=FORMAT. Raises: UsageError."""
    pattern, equals, name = word.rpartition("=")
    if pattern and equals and name:
        return pattern, name
    raise UsageError(
        "not a pattern and a format",
        where="--tensor",
        expected="such as down_proj=q6_k",
        found=repr(word[:80]),
    )


def stage_settings(stage: str, word: str | None, target: str | None = None) -> dict[str, Any]:
    """The request's fields for what --embedding or --head says: bits, or a name.

    Raises: UsageError for bits of what a GPTQ file keeps float.
    """
    if word and target == "gptq" and WHOLE.fullmatch(word):
        raise UsageError(f"a GPTQ file keeps the {stage} float", where=f"--{stage}", found=word)
    if word is None:
        return {}
    if WHOLE.fullmatch(word):
        return {f"{stage}_bits": int(word)}
    return {f"{stage}_type": word}


def default_out(
    model: str, bits: int | None, group_size: str, zero: ZeroKind, target: str | None = None
) -> Path:
    """Where the result goes when the user does not say."""
    name = model_name(model)
    container, _, type = (target or "").lower().partition(":")
    if type:
        return Path(f"{name}-{type}")
    group = group_size if group_size == "row" else f"g{group_size}"
    behind = f"int{bits}-{group}-{zero.value}"
    return Path(f"{name}-{container}-{behind}" if container else f"{name}-{behind}")


def cost_line(cost: Cost) -> str:
    """What a run will take, said before it starts."""
    return (
        f"needs about {bytes_text(cost.memory_bytes)} of memory, "
        f"{duration_text(cost.seconds)}, and {bytes_text(cost.working_bytes)} on disk, "
        f"of which {bytes_text(cost.output_bytes)} stay"
    )


def summary(result: QuantizeResult) -> dict[str, Any]:
    """The result as a record."""
    return {
        "out": str(result.out),
        "file_bytes": result.file_bytes,
        "bits_per_weight": result.bits_per_weight,
        "already_done": result.already_done,
        "fallbacks": result.manifest["fallbacks"],
    }


def print_summary(result: QuantizeResult) -> None:
    """Where the result lies, its size, and every fallback."""
    state = "already quantized" if result.already_done else "quantized"
    print(
        f"{state}: {result.out}  {bytes_text(result.file_bytes)}, "
        f"{result.bits_per_weight:.3f} bits per weight of the whole file"
    )
    by_reason: dict[str, list[str]] = {}
    for name in result.manifest["fallbacks"]:
        by_reason.setdefault(result.manifest["tensors"][name]["fallback"], []).append(name)
    for reason, names in by_reason.items():
        shown = ", ".join(names[:NAMES_SHOWN])
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        print(f"fallback: {reason}: {shown}{more}")
