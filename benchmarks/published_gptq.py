"""GPTQ as its paper and the programs around it run it, in plain PyTorch: the peer of our timings.

In: a transformers LlamaForCausalLM in f32, calibration tokens, settings. Out: codes, scales and
zero points of every linear layer in the blocks; the model then holds the decoded weights.
Source: arXiv 2210.17323, Algorithm 1 and section 3.3: H = 2 X X^T / n from forward hooks, one
sequence at a time; damping; U with H^-1 = U^T U; blocks of columns; groups fitted when the column
loop reaches them, from the current weights. Refuses group sizes that do not fit the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TRUE_SEQUENTIAL = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""Each step sees its inputs behind the quantized layers of the steps before it."""

ONE_PASS = (tuple(name for step in TRUE_SEQUENTIAL for name in step),)
"""All layers of a block from one pass through the block as it was."""


@dataclass(frozen=True)
class PublishedSettings:
    """What the published programs take as flags."""

    bits: int
    group_size: int  # 0: the whole row
    variable_zero: bool
    true_sequential: bool = True
    damping: float = 0.01  # share of the mean diagonal of H
    block_columns: int = 128

    def __post_init__(self) -> None:
        small, large = sorted((self.group_size or self.block_columns, self.block_columns))
        if large % small:
            raise ValueError(f"groups of {self.group_size} do not fit blocks of {large} columns")


@dataclass(frozen=True)
class PublishedLayer:
    """One quantized linear layer."""

    codes: Tensor  # (out_features, in_features), uint8
    scale: Tensor  # (out_features, groups), fp16
    zero_point: Tensor  # (out_features, groups), uint8


class GroupGrid:
    """The min-max grid of one group: a scale and a zero point for each row."""

    def __init__(self, weights: Tensor, settings: PublishedSettings) -> None:
        self.largest_code = 2**settings.bits - 1
        low = weights.amin(dim=1).clamp(max=0)
        high = weights.amax(dim=1).clamp(min=0)
        if settings.variable_zero:
            scale = (high - low) / self.largest_code
        else:
            scale = 2 * torch.maximum(-low, high) / self.largest_code
        self.zero_point = torch.full_like(scale, 2 ** (settings.bits - 1))
        if settings.variable_zero:
            self.zero_point = torch.round(-low / scale.masked_fill(scale == 0, 1))
        stored = scale.half().float()  # fp16 is what a file holds
        self.scale = stored.masked_fill(stored == 0, 1)

    def encode(self, column: Tensor) -> Tensor:
        """The nearest code of each row's weight, as a float."""
        codes = torch.round(column / self.scale) + self.zero_point
        return codes.clamp_(0, self.largest_code)

    def decode(self, codes: Tensor) -> Tensor:
        """The weight that each row's code stands for."""
        return self.scale * (codes - self.zero_point)


class LayerQuantizer:
    """One linear layer: gathers H through a hook, then chooses the codes."""

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear
        self.hessian = torch.zeros(linear.in_features, linear.in_features)
        self.tokens = 0

    def observe(self, _: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        """Add one batch to H, which stays the mean of 2 x x^T over all tokens so far."""
        batch = inputs[0].reshape(-1, self.linear.in_features).float()
        before, self.tokens = self.tokens, self.tokens + len(batch)
        share = before / self.tokens
        self.hessian.addmm_(batch.T, batch, beta=share, alpha=2 / self.tokens)

    def quantize(self, settings: PublishedSettings) -> PublishedLayer:
        """Choose the codes; the layer's weights become the decoded ones."""
        weights = self.linear.weight.data.float().clone()
        rows, columns = weights.shape
        group_size = settings.group_size or columns
        upper = self.inverse_factor(weights, settings.damping)
        codes = torch.empty(columns, rows, dtype=torch.uint8)
        grids: list[GroupGrid] = []
        for begin in range(0, columns, settings.block_columns):
            end = min(begin + settings.block_columns, columns)
            inside = upper[begin:end, begin:end]
            # (columns, rows): a column that lies in one piece makes this loop up to 3 x faster.
            block = weights[:, begin:end].T.contiguous()
            decoded, errors = torch.empty_like(block), torch.empty_like(block)
            for place, column in enumerate(block):
                if (begin + place) % group_size == 0:
                    # At a block's start the matrix is current; later, only the block is.
                    current = weights[:, begin:] if place == 0 else block[place:].T
                    grids.append(GroupGrid(current[:, :group_size], settings))
                codes[begin + place] = code = grids[-1].encode(column)
                decoded[place] = value = grids[-1].decode(code)
                errors[place] = error = (column - value) / inside[place, place]
                block[place:].addr_(inside[place, place:], error, alpha=-1)
            weights[:, begin:end] = decoded.T
            weights[:, end:].addmm_(errors.T, upper[begin:end, end:], alpha=-1)
        self.linear.weight.data.copy_(weights)
        scale = torch.stack([grid.scale for grid in grids], dim=1).half()
        zero_point = torch.stack([grid.zero_point for grid in grids], dim=1).to(torch.uint8)
        return PublishedLayer(codes.T.contiguous(), scale, zero_point)

    def inverse_factor(self, weights: Tensor, damping: float) -> Tensor:
        """U, upper triangular, with (H + damping)^-1 = U^T U; unused columns become 0."""
        diagonal = self.hessian.diagonal()
        dead = diagonal == 0
        diagonal[dead] = 1
        weights[:, dead] = 0
        diagonal += damping * diagonal.mean()
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.hessian))
        return torch.linalg.cholesky(inverse, upper=True)


class _Captured(Exception):
    """Ends a forward pass once the first block's input is known."""


def first_block_inputs(model: Any, tokens: Tensor) -> tuple[list[Tensor], dict[str, Any]]:
    """What flows into the first block, sequence by sequence, and the arguments beside it."""
    inputs: list[Tensor] = []
    beside: dict[str, Any] = {}

    def capture(_: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        inputs.append(arguments[0])
        beside.update(named)
        raise _Captured

    hook = model.model.layers[0].register_forward_pre_hook(capture, with_kwargs=True)
    for sequence in tokens:
        try:
            model(sequence[None], use_cache=False)
        except _Captured:
            continue
    hook.remove()
    return inputs, beside


@contextmanager
def observed(layers: list[LayerQuantizer]) -> Iterator[None]:
    """The layers gather H while this is open."""
    hooks = [layer.linear.register_forward_hook(layer.observe) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def run_block(block: nn.Module, inputs: list[Tensor], beside: dict[str, Any]) -> list[Tensor]:
    """A block's outputs, one sequence at a time."""
    outputs = (block(each, **beside) for each in inputs)
    return [output[0] if isinstance(output, tuple) else output for output in outputs]


@torch.no_grad()
def quantize_model(
    model: Any, tokens: Tensor, settings: PublishedSettings
) -> dict[str, PublishedLayer]:
    """Quantize the linear layers of all blocks. Shapes: tokens (sequences, length)."""
    inputs, beside = first_block_inputs(model, tokens)
    finished: dict[str, PublishedLayer] = {}
    for index, block in enumerate(model.model.layers):
        for names in TRUE_SEQUENTIAL if settings.true_sequential else ONE_PASS:
            layers = {name: LayerQuantizer(block.get_submodule(name)) for name in names}
            with observed(list(layers.values())):
                run_block(block, inputs, beside)
            for name, layer in layers.items():
                finished[f"model.layers.{index}.{name}.weight"] = layer.quantize(settings)
        inputs = run_block(block, inputs, beside)
    return finished
