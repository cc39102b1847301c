"""Keywords of a quantization, for Python and the command line: one word for one thing.

In: fields of QuantizeRequest, Calibration and SolveSettings as keywords, enumerations by name. Out:
a QuantizeRequest. Refuses keywords that do not exist, and two that contradict each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

from crumb.errors import UsageError
from crumb.formats.catalog import ROW, ZeroKind
from crumb.requests.budget import take_budget
from crumb.requests.keywords import check_known
from crumb.requests.number import as_float, as_integer
from crumb.requests.quantize_request import Calibration, QuantizeRequest
from crumb.solve.problem import AS_PUBLISHED, Method, Scales, SolveSettings

Kind = TypeVar("Kind", bound=StrEnum)

PUBLISHED = Calibration("wikitext2", sequences=128, length_tokens=2048)
"""What the papers draw."""


class Effort(StrEnum):
    """How much is spent on a quantization."""

    FAST = "fast"  # every calibration token counts alike, codes are not refined
    DEFAULT = "default"  # tokens count by a backward pass, layers answer for what earlier ones lost
    BEST = "best"  # and codes are trained: each block against the float one, then all together


EFFORTS: Mapping[Effort, Mapping[str, Any]] = {
    Effort.FAST: {"token_power": 0.0, "refinements": 0, "asymmetric": False},
    Effort.DEFAULT: {},
    Effort.BEST: {"training_steps": 400, "model_steps": 400},
}
"""What an effort says of SolveSettings."""

SHARE = re.compile(r"[0-9]*\.?[0-9]+%?", re.ASCII)

MOST_COLUMNS = 0.1
"""That may be floats: of more, wider codes are cheaper."""

MOST_GROUP = 1 << 24

FREE_GROUPS = (None, "gptq")
"""Targets that leave open how weights are grouped."""


UNIFORM = ("bits", "target", "group_size", "zero", "codes", "embedding", "head")
"""Keywords that say the format of many matrices at once."""


class QuantizeOptions(TypedDict, total=False):
    """Everything that may be said of a quantization beside the model and its output."""

    bits: int | None
    target: str | None
    group_size: int | str
    zero: ZeroKind | str
    codes: str
    embedding: int | str
    head: int | str
    memory: int | str | None
    context_tokens: int | None
    parallel: int | None
    cache: str | None
    bits_per_weight: float | None
    file_size: int | str | None
    swaps: int | None
    from_plan: str | Path | None
    tensor: Mapping[str, str] | Iterable[tuple[str, str]]
    restart: bool
    pack: bool
    calibration: Calibration | str
    sequences: int
    length_tokens: int
    seed: int
    effort: Effort | str
    as_published: bool
    solve: SolveSettings
    method: Method | str
    scales: Scales | str
    damping: float | None
    act_order: bool
    static_groups: bool
    refits: int
    refinements: int
    asymmetric: bool
    training_steps: int
    model_steps: int
    device: str
    token_power: float
    block_columns: int
    strict: bool
    lowest_zero_point: int
    keep_columns: float | str
    solved_embedding_bits: int


def make_quantize_request(
    model: str | Path, out: str | Path, **options: Unpack[QuantizeOptions]
) -> QuantizeRequest:
    """A request from keywords. Raises: UsageError."""
    records = (QuantizeRequest, Calibration, SolveSettings)
    values: dict[str, Any] = dict(options)
    as_published = values.pop("as_published", False)
    effort = kind_named(Effort, values.pop("effort", Effort.DEFAULT), "effort")
    values |= _planned(values)
    check_known(values, "a quantization", *records)
    target = values["target"] = _lower(values.get("target"))
    if target not in FREE_GROUPS and values.keys() & {"group_size", "zero"}:
        raise UsageError(
            "the target already says how weights are grouped",
            where="target",
            found=target,
            do="Drop group_size and zero",
        )
    if target is not None and "codes" in values:
        raise UsageError(
            "the target already says what codes stand for",
            where="target",
            found=target,
            do="Drop codes",
        )
    if values.get("keep_columns"):
        _check_columns(values)
    for stage in ("embedding", "head"):
        if target == "gptq" and not isinstance(values.get(stage, ""), str):
            raise UsageError(
                f"a GPTQ file keeps the {stage} float", where=stage, found=values[stage]
            )
    said = {**EFFORTS[effort], **_taken(values, SolveSettings)}
    solve = choose_solver(as_published, said, values.pop("solve", None))
    calibration = _calibration(as_published, values)
    if "group_size" in values:
        values["group_size"] = _group_size(values["group_size"])
    if "zero" in values:
        values["zero"] = kind_named(ZeroKind, values["zero"], "zero")
    if "tensor" in values:
        pairs = values["tensor"]
        values["tensor"] = tuple(pairs.items() if isinstance(pairs, Mapping) else map(tuple, pairs))
    return QuantizeRequest(str(model), Path(out), solve=solve, calibration=calibration, **values)


def _check_columns(values: Mapping[str, Any]) -> None:
    """Refuse float columns where they have no place. Raises: UsageError."""
    planned = values.get("budget") is not None or values.get("from_plan") is not None
    where = "target" if values.get("target") is not None else "budget" if planned else None
    if where is not None:
        raise UsageError(
            f"a {where} leaves no room for float columns beside codes",
            where="keep_columns",
            found=values["keep_columns"],
            do=f"Drop keep_columns, or the {where} and say bits",
        )


def _planned(values: dict[str, Any]) -> dict[str, Any]:
    """A budget, or the file of a plan, from its keywords, which `values` loses.

    Raises: UsageError where something else says the formats too.
    """
    budget, from_plan = take_budget(values), values.pop("from_plan", None)
    if budget is None and from_plan is None:
        return {}
    others = [name for name in UNIFORM if values.get(name) is not None]
    if budget is not None and from_plan is not None:
        others.append("from_plan")
    if others:
        raise UsageError(
            "a budget or a plan says the formats already",
            found=", ".join(others),
            do="Drop one; tensor={PATTERN: FORMAT} decides some matrices beside a budget",
        )
    if values.get("method") == Method.ROUND:
        raise UsageError(
            "a budget needs calibration, and rounding does without", where="method", found="round"
        )
    return {"budget": budget, "from_plan": None if from_plan is None else Path(from_plan)}


def choose_solver(
    as_published: bool, said: dict[str, Any], solve: SolveSettings | None = None
) -> SolveSettings:
    """The solver from what was said of it. Raises: UsageError where two things contradict."""
    if "keep_columns" in said:
        said["keep_columns"] = share_of_columns(said["keep_columns"])
    if as_published:
        if solve is not None or said.keys() & {"method", "scales", "act_order", "damping"}:
            raise UsageError(
                "as_published already says how to solve",
                do="Drop solve, method, scales, act_order and damping, or as_published",
            )
        return replace(AS_PUBLISHED, **said)
    damping = said.get("damping")
    if damping is not None:
        share = as_float(damping)
        if share is None or not 0 < share <= 1:
            raise UsageError(
                "damping is out of range", expected="above 0, at most 1", found=repr(damping)[:40]
            )
        said["damping"] = share
    if "method" in said:
        said["method"] = kind_named(Method, said["method"], "method")
        if solve is None and said["method"] is Method.ROUND:
            said.setdefault("scales", Scales.MINMAX)
    if "scales" in said:
        said["scales"] = kind_named(Scales, said["scales"], "scales")
    return replace(solve or SolveSettings(), **said)


def share_of_columns(value: object) -> float:
    """A share from 0.005 or 0.5%. Raises: UsageError."""
    share = as_float(value)
    if isinstance(value, str) and SHARE.fullmatch(value):
        share = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    if share is None or not 0 <= share <= MOST_COLUMNS:
        raise UsageError(
            "not a share of a matrix's columns",
            where="keep_columns",
            expected=f"such as 0.5% or 0.005, at most {MOST_COLUMNS:.0%}",
            found=repr(value)[:40],
        )
    return share


def kind_named(kinds: type[Kind], name: str, where: str) -> Kind:
    """The member of an enumeration. Raises: UsageError, naming those there are."""
    try:
        return kinds(name)
    except ValueError:
        raise UsageError(
            "no such kind", where=where, expected=" or ".join(kinds), found=repr(name)[:40]
        ) from None


def _calibration(as_published: bool, values: dict[str, Any]) -> Calibration:
    usual = Calibration(PUBLISHED.spec) if as_published else Calibration()
    text: Calibration | str = values.pop("calibration", usual)
    said = _taken(values, Calibration)
    calibration = Calibration(text) if isinstance(text, str) else text
    if as_published:
        said = {"sequences": PUBLISHED.sequences, "length_tokens": PUBLISHED.length_tokens} | said
    return replace(calibration, **said)


def _taken(values: dict[str, Any], record: Any) -> dict[str, Any]:
    """The keywords that are a record's fields; they leave the others."""
    return {each.name: values.pop(each.name) for each in fields(record) if each.name in values}


def _group_size(value: object) -> int:
    if value == "row":
        return ROW
    size = as_integer(value)
    if size is None or not 0 < size < MOST_GROUP:
        raise UsageError(
            "not a group size",
            where="group_size",
            expected="a number, or row",
            found=repr(value)[:40],
        )
    return size


def _lower(name: str | None) -> str | None:
    return None if name is None else name.lower()
