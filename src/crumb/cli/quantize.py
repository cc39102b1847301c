"""`crumb quantize`: a checkpoint to fewer bits.

In: a model and settings. Out: a crumb directory, and a summary of what it cost in bytes and error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from crumb.cli.option_groups import BUDGET, CALIBRATION, FORMAT, ONE_WAY, OUTPUT, SOLVER
from crumb.cli.output import bytes_text, log_cost, print_json, progress_bar
from crumb.cli.plan import print_plan
from crumb.cli.whole_number import WHOLE, OptionalWhole, Whole
from crumb.errors import UsageError
from crumb.exporting import model_name
from crumb.formats.catalog import CATALOG, ZeroKind
from crumb.pipeline import QuantizeRequest, QuantizeResult
from crumb.pipeline import plan as run_plan
from crumb.pipeline import quantize as run_quantize
from crumb.planning import plan_path
from crumb.requests.quantize_options import Effort, make_quantize_request
from crumb.run.memory_plan import CacheKind
from crumb.solve.problem import Method, Scales

NAMES_SHOWN = 3
"""Tensors that are named for each reason of a fallback."""


def quantize(
    model: str,
    /,
    *,
    bits: Annotated[OptionalWhole, FORMAT] = None,
    target: Annotated[str | None, FORMAT] = None,
    out: Annotated[Path | None, OUTPUT] = None,
    group_size: Annotated[str | None, FORMAT] = None,
    zero: Annotated[ZeroKind | None, FORMAT] = None,
    codes: Annotated[Literal["int", "nf4", "fp4", "mxfp4", "lut", "super"] | None, FORMAT] = None,
    effort: Annotated[Effort, SOLVER] = Effort.DEFAULT,
    device: Annotated[str, SOLVER] = "cpu",
    method: Annotated[Method | None, SOLVER] = None,
    scales: Annotated[Scales | None, SOLVER] = None,
    act_order: Annotated[bool | None, SOLVER] = None,
    damping: Annotated[float | None, SOLVER] = None,
    as_published: Annotated[bool, SOLVER, ONE_WAY] = False,
    embedding: Annotated[str | None, FORMAT] = None,
    head: Annotated[str | None, FORMAT] = None,
    keep_columns: Annotated[str | None, FORMAT] = None,
    tensor: Annotated[list[str] | None, FORMAT, ONE_WAY] = None,
    memory: Annotated[str | None, BUDGET] = None,
    context: Annotated[OptionalWhole, BUDGET] = None,
    parallel: Annotated[OptionalWhole, BUDGET] = None,
    cache: Annotated[CacheKind | None, BUDGET] = None,
    bits_per_weight: Annotated[float | None, BUDGET] = None,
    file_size: Annotated[str | None, BUDGET] = None,
    swaps: Annotated[OptionalWhole, BUDGET] = None,
    plan: Annotated[bool, BUDGET, ONE_WAY] = False,
    from_plan: Annotated[Path | None, BUDGET] = None,
    calibration: Annotated[str | None, CALIBRATION] = None,
    sequences: Annotated[OptionalWhole, CALIBRATION] = None,
    length: Annotated[OptionalWhole, CALIBRATION] = None,
    seed: Annotated[Whole, CALIBRATION] = 0,
    strict: Annotated[bool, SOLVER, ONE_WAY] = False,
    restart: Annotated[bool, OUTPUT, ONE_WAY] = False,
    pack: Annotated[bool, OUTPUT] = True,
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
        codes: int (default), nf4, fp4, mxfp4; lut: levels each matrix learns; super: super-blocks.
        effort: fast, default (weighs tokens, answers for what was lost) or best (trains codes too).
        device: where codes are trained: cpu, or a device of PyTorch such as cuda.
        method: gptq (default), or round (to nearest, no calibration).
        scales: search (weighted by H; default for gptq) or minmax (default for round).
        act_order: choose columns by descending diagonal of H (default).
        damping: share of H's mean diagonal; default follows tokens per column, .01 to .1.
        as_published: as GPTQ's paper ran it: 128 x 2048 tokens, damping .01, minmax, no act-order.
        embedding: bits (by default one more than the blocks'), a format, a GGUF type, or float.
        head: likewise, unless it is tied to the embedding.
        keep_columns: such as 0.5%: at most so many inputs of a matrix stay float16 beside the
            codes, where the error they save is worth their bytes.
        tensor: PATTERN=FORMAT for some matrices, as often as needed, the last that matches counts.
        memory: such as 6GiB, of the whole process: each matrix gets the format that loses least.
        context: tokens of each sequence that the memory is for (default 4096, or the model's).
        parallel: sequences of that length at once.
        cache: how keys and values are kept.
        bits_per_weight: such as 3.25, of the whole file: likewise.
        file_size: such as 3GB, of the weight files: likewise.
        swaps: exchanges of two formats that are tried by the KL of the whole mix (default 0).
        plan: show the formats that the budget comes to and write OUT.plan.json; quantize nothing.
        from_plan: such a file, whose formats are taken.
        calibration: NAME or FILE, several with weights; embedded:48,self:16 by default.
        sequences: calibration sequences (default 64).
        length: tokens of each (default 512).
        seed: of the draw of sequences.
        strict: fail where a tensor would need a fallback.
        pack: write a reference pack beside the weights and measure on it what this cost.
        restart: replace what a different command left in the output directory.
        json: print the result as JSON.
    """
    options: dict[str, Any] = {
        "bits": bits,
        "target": target,
        "group_size": bits_or_name(group_size),
        "zero": zero,
        "codes": codes,
        "effort": effort,
        "device": device,
        "method": method,
        "scales": scales,
        "act_order": act_order,
        "damping": damping,
        "as_published": as_published,
        "embedding": bits_or_name(embedding),
        "head": bits_or_name(head),
        "keep_columns": keep_columns,
        "tensor": tuple(parse_tensor(word) for word in tensor or ()) or None,
        "memory": memory,
        "context_tokens": context,
        "parallel": parallel,
        "cache": cache,
        "bits_per_weight": bits_per_weight,
        "file_size": file_size,
        "swaps": swaps,
        "from_plan": from_plan,
        "calibration": calibration,
        "sequences": sequences,
        "length_tokens": length,
        "seed": seed,
        "strict": strict or None,
        "restart": restart,
        "pack": pack,
    }
    said = {name: value for name, value in options.items() if value is not None}
    budget = memory or file_size or (bits_per_weight and f"{bits_per_weight:g}bpw")
    named = default_out(model, bits, group_size, zero, target, budget or from_plan, codes)
    request = make_quantize_request(model, out or named, **said)
    show_plan(request, json) if plan else show_result(run_shown(request), json)


def show_plan(request: QuantizeRequest, json: bool) -> None:
    """The formats that a budget comes to, with what finding them takes on stderr."""
    with progress_bar() as bar:
        formats = run_plan(request, bar, log_cost)
    print_json(formats) if json else print_plan(formats, plan_path(request.out))


def show_result(result: QuantizeResult, json: bool) -> None:
    """Where the result lies and what it cost."""
    print_json(summary(result)) if json else print_summary(result)


def run_shown(request: QuantizeRequest) -> QuantizeResult:
    """Quantize, with the cost and a bar on stderr."""
    with progress_bar() as bar:
        try:
            return run_quantize(request, bar, log_cost)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt("the same command continues where it stopped") from error


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


def bits_or_name(word: str | None) -> int | str | None:
    """A number where the word is one: bits of a stage, weights of a group."""
    return int(word) if word is not None and WHOLE.fullmatch(word) else word


def default_out(
    model: str,
    bits: int | None,
    group_size: str | None = None,
    zero: ZeroKind | None = None,
    target: str | None = None,
    budget: str | Path | None = None,
    codes: str | None = None,
) -> Path:
    """Where the result goes when the user does not say; `budget`: its words, or a plan's file."""
    name = model_name(model)
    if isinstance(budget, Path):
        return Path(f"{name}-{budget.name.partition('.')[0]}")
    if budget:
        return Path(f"{name}-{budget.replace(' ', '')}")
    container, _, type = (target or "").lower().partition(":")
    if type:
        return Path(f"{name}-{type}")
    usual = "32" if codes == "super" else QuantizeRequest.group_size
    group = "row" if group_size == "row" else f"g{group_size or usual}"
    kind = codes if codes in CATALOG else f"{codes or 'int'}{bits}"
    behind = f"{kind}-{group}-{zero or ZeroKind.FIXED}"
    return Path(f"{name}-{container}-{behind}" if container else f"{name}-{behind}")


def summary(result: QuantizeResult) -> dict[str, Any]:
    """The result as a record."""
    return {
        "out": str(result.out),
        "file_bytes": result.file_bytes,
        "bits_per_weight": result.bits_per_weight,
        "already_done": result.already_done,
        "fallbacks": result.manifest["fallbacks"],
        "measured": result.manifest.get("measured"),
    }


def print_summary(result: QuantizeResult) -> None:
    """Where the result lies, its size, and every fallback."""
    state = "already quantized" if result.already_done else "quantized"
    print(
        f"{state}: {result.out}  {bytes_text(result.file_bytes)}, "
        f"{result.bits_per_weight:.3f} bits per weight of the whole file"
    )
    allocation, measured = (result.manifest.get(key) for key in ("allocation", "measured"))
    if allocation:
        print(f"mean KL expected of these formats: {allocation['expected_kl']:.3g} nats")
    if measured:
        text, kl, error = measured["text"], measured["kl"], measured["kl_standard_error"]
        around = "" if error is None else f" ± {error:.5f}"
        print(f"mean KL from the float model: {kl:.5f}{around} nats on {text}")
    by_reason: dict[str, list[str]] = {}
    for name in result.manifest["fallbacks"]:
        by_reason.setdefault(result.manifest["tensors"][name]["fallback"], []).append(name)
    for reason, names in by_reason.items():
        shown = ", ".join(names[:NAMES_SHOWN])
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        print(f"fallback: {reason}: {shown}{more}")
