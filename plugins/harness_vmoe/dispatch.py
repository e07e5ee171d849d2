"""Tokens sent to their experts: three ways to the same outputs.

`grouped` sorts the tokens by expert and multiplies all groups at once, `loop` takes one expert
after the other, `einsum` lets every expert see every token and is there to test the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from harness_vit.vit import xavier_dense

ROW_GROUP = 8
"""Rows of an expert are padded to a multiple of this, so that none depends on the others."""

ALIGNMENT = 16
"""Bytes of which the rows of a grouped product must be a multiple."""


class ExpertDense(nn.Module):
    """A dense layer for each expert, all of them alike before training."""

    def __init__(self, num_experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        first = xavier_dense(inputs, outputs)
        nn.init.normal_(first.bias, std=1e-6)
        self.weight = nn.Parameter(first.weight.detach().T.repeat(num_experts, 1, 1))
        self.bias = nn.Parameter(first.bias.detach().repeat(num_experts, 1))


class Experts(nn.Module):
    """The MLPs of one layer: two dense layers around a GELU in its tanh form.

    Attributes:
        hidden: Kernels (expert, width, hidden).
        out: Kernels (expert, hidden, width).
    """

    def __init__(self, num_experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = ExpertDense(num_experts, width, hidden)
        self.out = ExpertDense(num_experts, hidden, width)


Rows: TypeAlias = Float[Tensor, "row inputs"]
Tokens: TypeAlias = Float[Tensor, "token width"]
Chosen: TypeAlias = Int[Tensor, "token k"]
Outputs: TypeAlias = Float[Tensor, "token k width"]
Kernels: TypeAlias = Float[Tensor, "expert inputs outputs"]
Products: TypeAlias = Float[Tensor, "row outputs"]
Ends: TypeAlias = Int[Tensor, "expert"]
Dispatch: TypeAlias = Callable[[Experts, Tensor, Tensor], Tensor]  # Tokens, Chosen -> Outputs


class _Groups(NamedTuple):
    """Where each choice lies in a buffer that is sorted by expert.

    Attributes:
        slots: Row of each choice.
        ends: Row after the last of each expert; padding included.
        owner: Expert of each row.
    """

    slots: Tensor
    ends: Tensor
    owner: Tensor


def grouped(mlp: Experts, tokens: Tokens, experts: Chosen) -> Outputs:
    """Sorted by expert, all products at once; no number goes back to the host on the way."""
    copies = _copies(tokens, experts)
    if tokens.is_meta:
        return _on_meta(mlp, copies).view(*experts.shape, -1)
    groups = _groups(experts, len(mlp.hidden.weight))
    buffer = copies.new_zeros(len(groups.owner), copies.shape[1])
    buffer = buffer.index_copy(0, groups.slots, copies)
    hidden = _gelu(_grouped_dense(mlp.hidden, buffer, groups))
    outputs = _grouped_dense(mlp.out, hidden, groups)
    return outputs.index_select(0, groups.slots).view(*experts.shape, -1)


def loop(mlp: Experts, tokens: Tokens, experts: Chosen) -> Outputs:
    """One expert after the other, as many rows each as it has tokens."""
    copies = _copies(tokens, experts)
    if tokens.is_meta:
        return _on_meta(mlp, copies).view(*experts.shape, -1)
    order = experts.flatten().sort(stable=True).indices
    counts = _counts(experts, len(mlp.hidden.weight)).tolist()
    parts = copies.index_select(0, order).split(counts)
    outputs = torch.cat([_one_expert(mlp, expert, part) for expert, part in enumerate(parts)])
    return outputs.index_select(0, order.sort().indices).view(*experts.shape, -1)


def einsum(mlp: Experts, tokens: Tokens, experts: Chosen) -> Outputs:
    """Every expert sees every token, and the chosen outputs are read: slow, for reference."""
    # N token, E expert, D width, F hidden
    hidden = torch.einsum("nd,edf->nef", tokens, mlp.hidden.weight) + mlp.hidden.bias
    outputs: Tensor = torch.einsum("nef,efd->ned", _gelu(hidden), mlp.out.weight) + mlp.out.bias
    return outputs.gather(1, experts[:, :, None].expand(-1, -1, outputs.shape[2]))


DISPATCHES: Mapping[str, Dispatch] = MappingProxyType(
    {"grouped": grouped, "loop": loop, "einsum": einsum}
)


def _copies(tokens: Tokens, experts: Chosen) -> Rows:
    """A row for each choice."""
    return tokens[:, None].expand(-1, experts.shape[1], -1).flatten(0, 1)


def _gelu(hidden: Tensor) -> Tensor:
    return functional.gelu(hidden, approximate="tanh")


def _on_meta(mlp: Experts, copies: Rows) -> Rows:
    """The work of one expert on each row: without numbers nobody knows which expert."""
    hidden = _gelu(copies @ mlp.hidden.weight[0] + mlp.hidden.bias[0])
    return hidden @ mlp.out.weight[0] + mlp.out.bias[0]


def _one_expert(mlp: Experts, expert: int, rows: Rows) -> Rows:
    padded = functional.pad(rows, (0, 0, 0, -len(rows) % ROW_GROUP))
    hidden = _gelu(padded @ mlp.hidden.weight[expert] + mlp.hidden.bias[expert])
    outputs = hidden @ mlp.out.weight[expert] + mlp.out.bias[expert]
    return outputs[: len(rows)]


def _counts(experts: Chosen, num_experts: int) -> Ends:
    flat = experts.flatten()
    return flat.new_zeros(num_experts).scatter_add(0, flat, torch.ones_like(flat))


def _groups(experts: Chosen, num_experts: int) -> _Groups:
    """A buffer that is large enough for any choice, whose spare rows are the last expert's."""
    flat = experts.flatten()
    rows = math.ceil((len(flat) + num_experts * (ROW_GROUP - 1)) / ROW_GROUP) * ROW_GROUP
    counts = _counts(experts, num_experts)
    padded = counts + -counts % ROW_GROUP
    ends = padded.cumsum(dim=0)
    shift = (ends - padded) - (counts.cumsum(dim=0) - counts)
    chosen, order = flat.sort(stable=True)
    slots = torch.arange(len(flat), device=flat.device) + shift.index_select(0, chosen)
    slots = slots.new_zeros(slots.shape).scatter(0, order, slots)
    places = torch.arange(rows, device=flat.device)
    owner = torch.searchsorted(ends[:-1].contiguous(), places, right=True)
    ends = torch.cat([ends[:-1], ends.new_full((1,), rows)])
    return _Groups(slots, ends.to(torch.int32), owner)


def _grouped_dense(dense: ExpertDense, rows: Rows, groups: _Groups) -> Products:
    device = rows.device.type
    weight: Tensor = dense.weight
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        rows, weight = rows.to(dtype), weight.to(dtype)
    multiply = _grouped_product if _is_groupable(rows, weight) else _split_product
    products = multiply(rows, weight, groups.ends)
    return products + dense.bias.index_select(0, groups.owner).to(products.dtype)


def _grouped_product(rows: Rows, weight: Kernels, ends: Ends) -> Products:
    product: Tensor = functional.grouped_mm(rows, weight, offs=ends)
    return product


def _split_product(rows: Rows, weight: Kernels, ends: Ends) -> Products:
    parts = rows.tensor_split(ends[:-1].cpu().long())
    return torch.cat([part @ kernel for part, kernel in zip(parts, weight, strict=True)])


def _is_groupable(rows: Rows, weight: Kernels) -> bool:
    """Whether torch multiplies groups of this type and width."""
    widths = (weight.shape[1] * weight.element_size(), weight.shape[2] * weight.element_size())
    return (
        hasattr(functional, "grouped_mm")
        and rows.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and rows.dtype == weight.dtype
        and all(width % ALIGNMENT == 0 for width in widths)
    )
