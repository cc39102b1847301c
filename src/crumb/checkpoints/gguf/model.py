"""What a model becomes as a GGUF file: its architecture, metadata, the names of its tensors.

In: a configuration. Out: GgufModel; gguf/configuration.py reads its metadata back.
Refuses settings that llama.cpp has no architecture or no key for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crumb.architectures.builder import reader_of
from crumb.architectures.configuration import Configuration, read_flag, shown
from crumb.architectures.family import BlockKind, Family
from crumb.architectures.plan import Plan
from crumb.architectures.reader import Reader, Sizes
from crumb.architectures.registry import families, plan_of
from crumb.checkpoints.gguf.architecture import Architecture, Named, names_of_model
from crumb.checkpoints.gguf.architecture_rows import ARCHITECTURE_OF_FAMILY
from crumb.checkpoints.gguf.as_read import check_as_read, without_idle_windows
from crumb.checkpoints.gguf.configuration import (
    KEYS,
    THETA,
    TIED,
    VOCABULARY,
    WINDOW,
    read_configuration,
)
from crumb.checkpoints.gguf.header import Value
from crumb.checkpoints.gguf.latent import (
    KEY_VALUE_HEADS,
    KEY_WIDTH,
    ROTATED,
    VALUE_WIDTH,
    latent_keys,
)
from crumb.checkpoints.gguf.metadata import Metadata
from crumb.checkpoints.gguf.rope_scaling import GROWING, GROWTH, frequency_factors, scaling_keys
from crumb.errors import UsageError
from crumb.operations.attention import Attention
from crumb.operations.rope import Rope

NO_HEADS: dict[str, Value] = {KEYS["heads"]: 0, KEYS["positions"]: 1 << 20}
"""What llama.cpp wants to be told of a model that keeps a state and does not attend."""


@dataclass(frozen=True)
class GgufModel:
    """What a model becomes as a GGUF file."""

    architecture: Architecture
    reader: Reader
    rope: Rope | None  # None: nothing rotates
    metadata: dict[str, Value]

    @property
    def family(self) -> Family:
        return self.reader.family

    def names(self) -> Iterator[Named]:
        """Every tensor that such a model can have, under both names, as it is written."""
        every = names_of_model(self.architecture, self.reader)
        return (name for name in every if not name.older)


def gguf_model_of(configuration: Configuration) -> GgufModel:
    """The architecture and its keys for a configuration.

    Raises: UsageError for what llama.cpp has no architecture or no key for; CheckpointError.
    """
    model_type = configuration.get("model_type")
    row = ARCHITECTURE_OF_FAMILY.get(model_type) if isinstance(model_type, str) else None
    if row is None:
        raise UsageError(
            "llama.cpp does not load this family",
            where="config.json: model_type",
            expected=f"one of {', '.join(ARCHITECTURE_OF_FAMILY)}",
            found=shown(model_type),
        )
    reader = reader_of(families()[str(model_type)], configuration)
    kinds = reader.family.kinds(reader)
    rope, plan = _rope(kinds), without_idle_windows(plan_of(configuration))
    _check_expressible(row, reader, reader.sizes)
    keys = _keys_of(row, reader, kinds, plan)
    metadata: dict[str, Value] = {"general.architecture": row.name}
    metadata |= {row.key(short): value for short, value in keys.items()}
    model = GgufModel(row, reader, rope, metadata)
    theirs = {each.ours: each.theirs for each in model.names()}
    tensors = {theirs[spec.name] for spec in plan.tensors()}
    again = read_configuration(Metadata(Path("-"), metadata), tensors, frequency_factors(rope))
    check_as_read(row.name, plan, without_idle_windows(plan_of(again)))
    return model


def _keys_of(
    row: Architecture, reader: Reader, kinds: tuple[BlockKind, ...], plan: Plan
) -> dict[str, Value]:
    """The keys of a file, without the architecture's name. Raises: UsageError."""
    sizes, family, rope = reader.sizes, reader.family, _rope(kinds)
    keys: dict[str, Value] = {short: getattr(sizes, word) for word, short in KEYS.items()}
    keys |= {VOCABULARY: sizes.vocabulary, row.epsilon: sizes.epsilon}
    if row.attends:
        keys |= {
            KEY_VALUE_HEADS: _key_value_heads(row, plan, sizes),
            KEY_WIDTH: sizes.head_dim,
            VALUE_WIDTH: sizes.head_dim,
        }
    else:
        keys |= NO_HEADS
    if row.latent:
        keys |= latent_keys(reader)
    if rope is not None:
        keys |= {THETA: rope.theta, ROTATED: rope.dimensions, **scaling_keys(rope, row.name)}
    window = _window(row, kinds, sizes)
    if window is not None:
        keys[WINDOW] = window
    keys |= {short: reader.flag(short) for short in row.flags}
    for word, short in row.numbers.items():
        number = reader.optional_number(word)
        if number is not None:
            keys[short] = number
    if row.name in GROWING and kinds[0].temperature is not None:
        keys[GROWTH] = kinds[0].temperature.rate
    for word, short in {**row.counts, **row.needed}.items():
        if word in family.keys and reader.find(word)[1] is not None:
            keys[short] = reader.size(word, lowest=0)
    for setting, short in row.settings.items():
        value = reader.configuration.get(setting, family.defaults.get(setting))
        if value is not None:
            keys[short] = value
    return keys | {**row.fixed, **row.stated(reader)}


def _key_value_heads(row: Architecture, plan: Plan, sizes: Sizes) -> Value:
    """How many, of a hybrid for each block."""
    if not row.hybrid:
        return sizes.key_value_heads
    attends = [
        any(isinstance(each, Attention) for each in stage.operations) for stage in plan.stages[1:-1]
    ]
    return np.array([sizes.key_value_heads * each for each in attends], np.int32)


def _rope(kinds: tuple[BlockKind, ...]) -> Rope | None:
    """That of the blocks that see everything, where they have another than the rest."""
    ropes = [kind.rope for kind in kinds if kind.rope is not None]
    full = [kind.rope for kind in kinds if kind.rope is not None and kind.window is None]
    return next(iter(full or ropes), None)


def _check_expressible(row: Architecture, reader: Reader, sizes: Sizes) -> None:
    """Refuse settings that the architecture has no key for. Raises: UsageError."""
    expected = found = None
    if sizes.activation not in row.activations:
        expected, found = f"activation {' or '.join(row.activations)}", sizes.activation
    elif row.attends and row.whole_heads and sizes.heads * sizes.head_dim != sizes.hidden:
        found = f"{sizes.heads} heads of {sizes.head_dim}"
        expected = f"heads that make up the hidden size of {sizes.hidden}"
    elif not row.grouped and sizes.heads != sizes.key_value_heads:
        expected, found = f"{sizes.heads} key-value heads", str(sizes.key_value_heads)
    elif row.tied and not read_flag(reader.configuration, TIED, reader.family.tied):
        expected, found = "a head that is the embedding", f"{TIED} false"
    elif row.own_head and read_flag(reader.configuration, TIED, reader.family.tied):
        expected, found = "a head of its own", f"{TIED} true"
    for role, blocks in row.from_blocks.items():
        if reader.flag(reader.family.optional.get(role, False)) and sizes.blocks < blocks:
            expected, found = f"no {role} in so few blocks", f"one in {sizes.blocks} blocks"
    for role in row.biases:
        if not reader.flag(reader.family.biases.get(role, False)):
            expected, found = f"a bias of {role}", "none"
    for role, flag in reader.family.biases.items():
        if not row.takes_bias(role) and reader.flag(flag):
            expected, found = f"no bias of {role}", "one"
    for name, (limit, own) in row.limits(reader).items():
        if limit != own:
            expected, found = f"{name} {limit}", str(own)
    if expected is not None:
        raise UsageError(
            f"llama.cpp's {row.name} cannot express this model",
            where="config.json",
            expected=expected,
            found=found,
        )


def _window(row: Architecture, kinds: tuple[BlockKind, ...], sizes: Sizes) -> int | None:
    """The sliding window of every block; None where it never cuts anything off."""
    windows = {kind.window for kind in kinds}
    if row.windows:
        return next((window for window in windows if window is not None), None)
    cutting = {window for window in windows if window is not None and window < sizes.positions}
    if not cutting:
        return None
    if row.windowed is None or len(windows) > 1:
        raise UsageError(
            f"llama.cpp's {row.name} has no sliding window",
            where="config.json: sliding_window",
            expected="none",
            found=min(cutting),
        )
    return min(cutting)
