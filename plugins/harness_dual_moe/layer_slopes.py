"""How much each kind of layer can lengthen a perturbation: upper bounds, rounded upwards."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.api import ModelError

ROUNDING = 2.0**-52
"""Twice the largest relative error of one operation in float64."""


class Slope(NamedTuple):
    """How much a perturbation of size 1 can move some units, at most."""

    each: Tensor  # (1, ...) of each unit alone
    whole: Tensor | None  # in L2, the length of all their moves together; None in Linf


def up(values: Tensor, terms: int) -> Tensor:
    """At least the true value of a sum of so many terms, all of them positive."""
    return values * (1 + (terms + 2) * ROUNDING)


def down(values: Tensor) -> Tensor:
    """At most the true value of one operation."""
    return torch.nextafter(values, torch.full_like(values, float("-inf")))


def linear(before: Slope, weight: Tensor, call: Callable[[Tensor, Tensor], Tensor]) -> Slope:
    """After a linear layer: the better of its absolute weights' word and that of its norms."""
    terms = weight[0].numel()
    each = up(call(before.each, weight.abs()), terms)
    if before.whole is None:
        return Slope(each, None)
    rows = up(call(torch.ones_like(before.each), weight.square()), terms).sqrt()
    each = torch.minimum(each, up(rows * before.whole, 2))
    stretch = _stretch(lambda units: call(units, weight.abs()), before.each, weight.numel())
    return _shortest(each, stretch * before.whole)


def _stretch(call: Callable[[Tensor], Tensor], like: Tensor, terms: int) -> Tensor:
    """sqrt(norm1 * norminf) of a linear map with no negative weight."""
    with torch.enable_grad():
        units = torch.ones_like(like).requires_grad_()
        moved = call(units)
        (columns,) = torch.autograd.grad(moved.sum(), units)
    return up((moved.detach().amax() * columns.amax()).sqrt(), terms)


def _shortest(each: Tensor, whole: Tensor) -> Slope:
    """The better of two bounds, for the units and for their vector."""
    length = up(each.norm(), each.numel())
    whole = torch.minimum(up(whole, 1), length)
    return Slope(torch.minimum(each, whole), whole)


def _averaged(before: Slope, call: Callable[[Tensor], Tensor], terms: int) -> Slope:
    """After a layer of means."""
    each = up(call(before.each), terms)
    if before.whole is None:
        return Slope(each, None)
    return _shortest(each, _stretch(call, before.each, terms) * before.whole)


def _max_pooled(layer: Any, before: Slope) -> Slope:
    """A maximum moves by no more than the unit of its window that moves most."""
    size, stride = _pair(layer.kernel_size), _pair(layer.stride)
    if _pair(layer.dilation) != (1, 1):
        raise ModelError(f"no slope is known of {layer}")
    each = functional.max_pool2d(
        before.each, layer.kernel_size, layer.stride, layer.padding, ceil_mode=layer.ceil_mode
    )
    if before.whole is None:
        return Slope(each, None)
    windows = -(-size[0] // stride[0]) * -(-size[1] // stride[1])  # that a unit is part of
    return _shortest(each, before.whole * windows**0.5)


def _average_pooled(layer: Any, before: Slope) -> Slope:
    height, width = _pair(layer.kernel_size)
    return _averaged(before, layer, height * width)


def _mean(before: Slope, dim: Any = None, keepdim: bool = False) -> Slope:  # noqa: FBT001, FBT002 - as torch has it
    if dim is None:
        raise ModelError("no slope is known of a mean over the batch")
    return _averaged(before, lambda units: units.mean(dim, keepdim), before.each.numel())


def flattened(before: Slope, start: int = 0) -> Slope:
    """The same units in one row; the batch stays apart."""
    if start != 1:
        raise ModelError("no slope is known of images that are flattened together")
    return Slope(before.each.flatten(1), before.whole)


def _added(first: Any, second: Any) -> Slope:
    """After a sum or a difference; a constant moves nothing."""
    if not isinstance(first, Slope):
        return second  # type: ignore[no-any-return]
    if not isinstance(second, Slope):
        return first
    each = up(first.each + second.each, 1)
    if first.whole is None or second.whole is None:
        return Slope(each, None)
    return _shortest(each, first.whole + second.whole)


def times(first: Any, second: Any) -> Slope:
    """After a product with a constant."""
    before, factor = (first, second) if isinstance(first, Slope) else (second, first)
    if isinstance(factor, Slope):
        raise ModelError("no slope is known of a product of two parts of a network")
    size = torch.as_tensor(factor, dtype=torch.float64, device=before.each.device).abs()
    each = up(before.each * size, 1)
    return Slope(each, None if before.whole is None else up(before.whole * size.amax(), 1))


def _divided(first: Any, second: Any) -> Slope:
    if isinstance(second, Slope):
        raise ModelError("no slope is known of a division by a part of a network")
    return times(first, 1 / torch.as_tensor(second, dtype=torch.float64))


def joined(parts: list[Slope], dim: int = 0) -> Slope:
    """After a concatenation."""
    each = torch.cat([part.each for part in parts], dim)
    if any(part.whole is None for part in parts):
        return Slope(each, None)
    lengths = torch.stack([part.whole for part in parts])  # type: ignore[misc]
    return _shortest(each, up(lengths.norm(), len(parts)))


def _unmoved(before: Slope, *_: Any, **__: Any) -> Slope:
    return before


def _pair(size: Any) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


UNMOVED = (nn.ReLU, nn.Identity, nn.Dropout)
POOLS: Mapping[type, Callable[[Any, Slope], Slope]] = {
    nn.MaxPool2d: _max_pooled,
    nn.AvgPool2d: _average_pooled,
    nn.AdaptiveAvgPool2d: lambda layer, before: _averaged(before, layer, before.each[0, 0].numel()),
}
FUNCTIONS: Mapping[Any, Callable[..., Slope]] = {
    functional.relu: _unmoved,
    torch.relu: _unmoved,
    "relu": _unmoved,
    "contiguous": _unmoved,
    functional.avg_pool2d: lambda before, size: _averaged(
        before, lambda units: functional.avg_pool2d(units, size), size**2
    ),
    torch.flatten: flattened,
    "flatten": flattened,
    operator.add: _added,
    operator.sub: _added,
    operator.mul: times,
    operator.truediv: _divided,
    "mean": _mean,
    torch.cat: joined,
}
