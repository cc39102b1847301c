"""What is asked of a quantization, and the format that each matrix gets by it.

In: bits or a target (gguf:TYPE, gptq), formats by tensor name, solver settings. Out: a Choice.
Refuses formats that the target cannot hold, patterns that name nothing, settings that contradict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from crumb.architectures.plan import Plan
from crumb.errors import UsageError, placed
from crumb.formats.catalog import CodeRow, Format, ZeroKind, find_row, format_of_row
from crumb.operations.embed import Embed
from crumb.operations.operation import TensorSpec
from crumb.requests.budget import Budget
from crumb.requests.number import as_integer
from crumb.requests.target import Asked, Target, format_named, parse_target
from crumb.solve.problem import Method, SolveSettings, check_columns, check_super_blocks

STAGES = ("blocks", "embedding", "head")

ROUNDED_BITS = 8
"""Of an embedding and a head that nothing solves, or that lie in another program's file."""

SOLVED_BITS = {2: 4, 3: 5, 4: 5, 5: 6, 6: 8, 8: 8}
"""Of those that are solved, by the bits of the blocks: what pays in KL (docs/quality.md)."""


DEFAULT_MIXTURE = "embedded:48,self:16"
"""The texts of the package, and what the model writes itself."""


@dataclass(frozen=True)
class Calibration:
    """Which text the statistics come from."""

    spec: str = DEFAULT_MIXTURE
    sequences: int = 64
    length_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("sequences", "length_tokens", "seed"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))


CPU = "cpu"
"""Where codes are trained unless another device is named."""


@dataclass(frozen=True)
class QuantizeRequest:
    """Everything that decides the bytes of a quantized model."""

    model: str
    out: Path
    bits: int | None = None  # None: as the target says
    group_size: int = 128
    zero: ZeroKind = ZeroKind.FIXED
    codes: str = "int"  # what the blocks' codes stand for: int, nf4, fp4, mxfp4, lut, super
    embedding: int | str | None = None  # bits, or a format, a GGUF type, or float; None: as usual
    head: int | str | None = None
    solve: SolveSettings = field(default_factory=SolveSettings)
    calibration: Calibration = field(default_factory=Calibration)
    restart: bool = False
    device: str = CPU  # where codes are trained: cpu, or a device of PyTorch
    pack: bool = True  # a reference pack lies beside the weights, and what it cost is measured
    target: str | None = None  # gguf:TYPE or gptq
    tensor: tuple[tuple[str, str], ...] = ()  # (pattern, format): the last that matches counts
    budget: Budget | None = None  # chooses the format of what no pattern names
    from_plan: Path | None = None  # likewise, from what a budget came to before

    def __post_init__(self) -> None:
        for name in ("bits", "group_size", *STAGES[1:]):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, name, _whole(name, value))
        if self.device != CPU and self.trained_on is None:
            raise UsageError(
                "a device is where codes are trained, and nothing is trained",
                where="device",
                found=self.device,
                do="Give --effort best, or leave the device out",
            )
        for stage in () if self.is_planned else STAGES:  # also a head that turns out to be tied
            with placed(stage):
                self.format_of(stage)
        for pattern, name in self.tensor:
            with placed(pattern):
                self._named("blocks", name)

    @property
    def is_planned(self) -> bool:
        """Whether a plan says the formats, and bits, groups and zero do not."""
        return self.budget is not None or self.from_plan is not None

    @property
    def trained_on(self) -> str | None:
        """The device, where its arithmetic decides bytes."""
        trains = self.solve.trains or self.solve.trains_together
        return self.device if trains and self.device != CPU else None

    @property
    def container(self) -> Target | None:
        """What the result is to be exported to. Raises: UsageError."""
        return None if self.target is None else parse_target(self.target)

    @property
    def settings(self) -> SolveSettings:
        """The solver's settings, with what the target asks of them."""
        if self.container is None:
            return self.solve
        return replace(self.solve, lowest_zero_point=self.container.lowest_zero_point)

    def format_of(self, stage: str) -> Format | None:
        """The format of a stage's matrices; None leaves them float. Raises: UsageError."""
        stage = stage if stage in STAGES else "blocks"
        bits = {"embedding": self.embedding, "head": self.head}.get(stage, self.bits)
        if bits is None and stage != "blocks":
            bits = self.usual_bits
        if isinstance(bits, str):
            return self._named(stage, bits)
        if self.container is not None:
            return self.container.format_of(stage, Asked(bits, self.group_size, self.zero))
        if bits is None:
            raise UsageError(
                "nothing says how many bits",
                do="Give bits, a target such as gguf:q3_k, or a budget such as memory 6GiB",
            )
        row = find_row(bits, self.codes if stage == "blocks" else "int")
        return format_of_row(row, self._group_size_of(row), self.zero)

    def _group_size_of(self, row: CodeRow) -> int:
        """Of a row that has one size of groups nothing else says it. Raises: UsageError."""
        if len(row.group_sizes) > 1:
            return self.group_size
        if self.group_size not in (type(self).group_size, *row.group_sizes):
            raise UsageError(
                f"groups of {row.name} have one size",
                where="group_size",
                found=self.group_size,
                do="Drop group_size; embedding=int8-g64-fixed says that of an embedding",
            )
        return row.group_sizes[0]

    @property
    def usual_bits(self) -> int:
        """Of an embedding and a head of which nothing is said."""
        solved = self.solve.method is Method.GPTQ and self.solve.solved_embedding_bits
        if self.target is not None or self.bits is None or not solved:
            return ROUNDED_BITS
        return SOLVED_BITS.get(self.bits, ROUNDED_BITS)

    def wanted(self, stage: str, tensor: str) -> Format | None:
        """The format asked for one matrix; None leaves it float. Raises: UsageError."""
        for pattern, name in reversed(self.tensor):
            if matches(pattern, tensor):
                with placed(tensor):
                    return self._named(stage if stage in STAGES else "blocks", name)
        return self.format_of(stage)

    def _named(self, stage: str, name: str) -> Format | None:
        """The format that a name means, checked against the target. Raises: UsageError."""
        format = format_named(name)
        if self.container is not None:
            self.container.check(stage, format)
        return format

    def blocks(self) -> Format:
        """The format of the blocks' matrices, unless a pattern says otherwise."""
        format = self.format_of("blocks")
        assert format is not None, "no target leaves the blocks float"
        return format

    def key(self) -> dict[str, Any]:
        """What decides the bytes, as the manifest has it; what was not asked for is absent."""
        blocks, solve = self.blocks(), asdict(self.settings)
        embedding = self.format_of("embedding")
        if embedding is None or not self.settings.solves_embedding(embedding):
            del solve["solved_embedding_bits"]
        if not self.settings.weighs_tokens:
            del solve["token_power"]
        if self.settings.method is Method.ROUND or not self.settings.refinements:
            del solve["refinements"]
        if not self.settings.corrects:
            del solve["asymmetric"]
        if not self.settings.trains:
            del solve["training_steps"]
        if not self.settings.trains_together:
            del solve["model_steps"]
        for name in ("lowest_zero_point", "keep_columns"):
            if not solve[name]:
                del solve[name]
        later = {
            "codes": None if self.codes == "int" else self.codes,
            "target": self.target,
            "device": self.trained_on,
            "embedding_type": self.embedding if isinstance(self.embedding, str) else None,
            "head_type": self.head if isinstance(self.head, str) else None,
            "tensors": [list(pair) for pair in self.tensor],
        }
        return {
            "bits": blocks.bits,
            "group_size": blocks.group_size,
            "zero": blocks.zero.value,
            "embedding_bits": _number(self.embedding, self.usual_bits),
            "head_bits": _number(self.head, self.usual_bits),
            "solve": solve,
        } | {name: value for name, value in later.items() if value}


@dataclass(frozen=True)
class Choice:
    """The format of every matrix, by tensor name; one that is in neither is left float."""

    formats: Mapping[str, Format]
    fallbacks: Mapping[str, str]  # why a matrix, quantized or left float, is not what was asked


def choose(plan: Plan, request: QuantizeRequest) -> Choice:
    """The format of every matrix; a tied one is the embedding's.

    Raises: UsageError for a format that a matrix cannot have, a fallback in strict mode, and a
    pattern that matches no matrix.
    """
    formats: dict[str, Format] = {}
    fallbacks: dict[str, str] = {}
    matrices = matrices_of(plan)
    _check_patterns(request, matrices)
    for name, (stage, spec) in matrices.items():
        format, reason = _that_fits(request.wanted(stage, name), spec, request)
        if format is not None:
            format.check_width(spec.shape[1], name)
            check_super_blocks(request.solve, format, name)
            check_columns(request.solve, name)
            formats[name] = format
        if reason is not None:
            fallbacks[name] = reason
    return Choice(formats, fallbacks)


def named_formats(plan: Plan, request: QuantizeRequest) -> dict[str, Format | None]:
    """The formats of the matrices that a pattern names; None: float. Raises: UsageError."""
    matrices = matrices_of(plan)
    _check_patterns(request, matrices)
    named = {
        name: stage
        for name, (stage, _) in matrices.items()
        if any(matches(pattern, name) for pattern, _ in request.tensor)
    }
    return {name: request.wanted(stage, name) for name, stage in named.items()}


def _check_patterns(request: QuantizeRequest, matrices: Mapping[str, object]) -> None:
    for pattern, _ in request.tensor:
        if not any(matches(pattern, name) for name in matrices):
            raise UsageError(
                "no matrix has such a name",
                where=pattern,
                do="See the names with `crumb show MODEL --tensors`",
            )


def matrices_of(plan: Plan) -> dict[str, tuple[str, TensorSpec]]:
    """Stage and shape of every matrix, in the plan's order, a tied one where it comes first."""
    matrices: dict[str, tuple[str, TensorSpec]] = {}
    for stage in plan.stages:
        tables = {op.weight for op in stage.operations if isinstance(op, Embed)}
        for spec in stage.tensors():
            if spec.matrix:
                kind = "embedding" if spec.name in tables else stage.name
                matrices.setdefault(spec.name, (kind, spec))
    return matrices


def of_plan(plan: Plan, request: QuantizeRequest) -> QuantizeRequest:
    """What can be asked of a model that reads a source: its embedding is rounded.

    Raises: UsageError for what is done for decoders alone.
    """
    if not plan.inputs:
        return request
    if request.solve.trains or request.solve.trains_together or request.is_planned:
        raise UsageError(
            "no codes are trained of a model with an encoder yet, and no formats chosen for it",
            where=plan.family,
            do="Leave --effort best and budgets out, and give bits",
        )
    return replace(request, solve=replace(request.solve, solved_embedding_bits=0))


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern means this tensor: a glob of the whole name, or a part of it."""
    if any(character in pattern for character in "*?["):
        return fnmatchcase(name, pattern)
    return pattern in name


def _that_fits(
    chosen: Format | None, spec: TensorSpec, request: QuantizeRequest
) -> tuple[Format | None, str | None]:
    """What the target can hold of this matrix, and why that is not what was asked for."""
    if chosen is None or request.container is None:
        return chosen, None
    format, reason = request.container.fit(chosen, spec.shape)
    if reason is not None and request.solve.strict:
        raise UsageError(
            "a fallback is needed and --strict forbids it", where=spec.name, found=reason
        )
    return format, reason


def needs_calibration(request: QuantizeRequest) -> bool:
    """Rounding looks at the weights alone."""
    return request.solve.method is not Method.ROUND


def _number(asked: int | str | None, usual: int) -> int:
    """Bits that were asked for; the usual ones beside a name of a format, which is said apart."""
    return asked if isinstance(asked, int) else usual


def _whole(name: str, value: object) -> int:
    integer = as_integer(value)
    if integer is None:
        raise UsageError(
            "not a whole number", where=name, expected="such as 4", found=repr(value)[:40]
        )
    return integer
