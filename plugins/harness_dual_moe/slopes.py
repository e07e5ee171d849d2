"""How fast the logits of a network can part: upper bounds that its weights alone prove.

Two bounds are carried from layer to layer, and each layer keeps the better one. Unit by unit, a
perturbation of size 1 moves the output of a linear layer by no more than its absolute weights make
of what it moved its inputs by: for Linf that is the sum of a row's absolute weights, and tighter
than the product of the largest such sums. In L2 the whole vector of units moves by no more than
the spectral norm, itself at most sqrt(norm1 * norminf), times what the vector before moved by.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn import functional

from harness.api import ModelError, Norm
from harness_dual_moe.layer_slopes import (
    FUNCTIONS,
    POOLS,
    UNMOVED,
    Slope,
    flattened,
    joined,
    linear,
    times,
    up,
)

Gaps = Float[Tensor, "*#batch classes classes"]  # one number for each pair of classes

NORMS = ("linf", "l2")


def gap_slopes(
    network: nn.Module,
    image_shape: tuple[int, ...],
    norm: Norm,
    *,
    scale: Tensor | None = None,
) -> Gaps:
    """Upper bounds: how fast two logits of a network part, for each unit of perturbation.

    Args:
        network: In evaluation mode, of linear, convolution, batch norm, ReLU, pooling and flatten
            layers, residual sums and concatenations; normalisation by constants is one of them.
        image_shape: Of what it is given, without the batch.
        norm: Of the perturbation.
        scale: How fast what it is given moves with the perturbed image, (1, channel, 1, 1); None
            where it is given the image itself.

    Raises:
        ModelError: A layer that has no bound here, or another norm.
    """
    if norm not in NORMS:
        raise ModelError(f"no slopes are known in norm {norm!r}; take 'linf' or 'l2'")
    graph = traced(network)
    parts = dict(network.named_modules())
    begin = torch.ones(1, *image_shape, dtype=torch.float64, device=_device(network))
    if scale is not None:
        begin = begin * scale.double().abs()
    known: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            known[node] = Slope(begin, begin.amax() if norm == "l2" else None)
        elif node.op == "output":
            return _gaps(node.args[0], known, parts)
        else:
            known[node] = _passed(node, known, parts, network)
    raise ModelError("no slopes are known of a network without an output")


def spectral_estimate(layer: nn.Module, image_shape: tuple[int, ...], *, steps: int = 30) -> float:
    """What power iteration says of a linear layer's spectral norm: from below, a diagnosis alone.

    No certificate may use it; its distance from `sqrt(norm1 * norminf)` says how loose that is.
    """
    vector = torch.ones(1, *image_shape, dtype=torch.float64)
    layer = layer.double()
    zero = layer(torch.zeros_like(vector))
    length = 0.0
    for _ in range(steps):
        vector = (vector / vector.norm()).detach().requires_grad_()
        moved = layer(vector) - zero
        length = float(moved.detach().norm())
        (vector,) = torch.autograd.grad(moved.square().sum() / 2, vector)
    return length


def traced(network: nn.Module) -> fx.Graph:
    """The operations of a network.

    Raises:
        ModelError: They cannot be read, or depend on more than its input.
    """
    hooked = (part._forward_hooks or part._forward_pre_hooks for part in network.modules())  # noqa: SLF001 - torch shows hooks nowhere else
    if any(hooked):
        raise ModelError("no slope is known of a network with forward hooks")
    if any(part.training for part in network.modules()):
        raise ModelError("no slope is known of a network in training mode; call eval() first")
    try:
        return fx.Tracer().trace(network)
    except Exception as error:  # whatever a module does that depends on its images
        raise ModelError(
            f"no slope is known of {type(network).__name__}, whose layers cannot be read: {error}"
        ) from error


def _device(network: nn.Module) -> torch.device:
    return next((part.device for part in network.parameters()), torch.device("cpu"))


def _gaps(node: Any, known: Mapping[fx.Node, Any], parts: Mapping[str, nn.Module]) -> Tensor:
    """The gaps of the outputs; two rows of a last linear layer are taken together."""
    layer = parts.get(str(node.target)) if node.op == "call_module" else None
    if type(layer) is not nn.Linear:
        each = known[node].each[0]
        apart = up(each[:, None] + each, 1)
        return apart.fill_diagonal_(0)
    before = known[node.args[0]]
    weight = layer.weight.detach().double()
    apart = (weight[:, None] - weight).abs()
    found = up(apart @ before.each[0], weight.shape[1])
    if before.whole is None:
        return found
    return torch.minimum(found, up(apart.norm(dim=2) * before.whole, weight.shape[1]))


def _passed(
    node: fx.Node, known: Mapping[fx.Node, Any], parts: Mapping[str, nn.Module], network: nn.Module
) -> Any:
    """The slope after one operation, or the constant that it is."""
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(network)
    if node.op == "call_module":
        return _layer(node, known, parts)
    given = [known[part] if isinstance(part, fx.Node) else part for part in node.args]
    named = {
        name: known[part] if isinstance(part, fx.Node) else part
        for name, part in node.kwargs.items()
    }
    rule = FUNCTIONS.get(node.target)
    if not _slopes([*node.args, *node.kwargs.values()], known):  # constants among themselves
        return _constant(node, given, named)
    if rule is None:
        raise ModelError(f"no slope is known of {_told(node.target)}")
    if rule is joined:
        given = [[known[part] for part in node.args[0]], *given[1:]]  # type: ignore[union-attr, index]
    return rule(*given, **named)


def _slopes(args: Any, known: Mapping[fx.Node, Any]) -> bool:
    """One of the arguments depends on the images."""
    flat = [part for item in args for part in (item if isinstance(item, (list, tuple)) else [item])]
    return any(isinstance(part, fx.Node) and isinstance(known[part], Slope) for part in flat)


def _constant(node: fx.Node, given: list[Any], named: dict[str, Any]) -> Any:
    if node.op == "call_method":
        return getattr(given[0], str(node.target))(*given[1:], **named)
    return node.target(*given, **named)  # type: ignore[operator]


def _told(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _layer(node: fx.Node, known: Mapping[fx.Node, Any], parts: Mapping[str, nn.Module]) -> Slope:
    layer, before = parts[str(node.target)], known[node.args[0]]  # type: ignore[index]
    kind = type(layer)  # a subclass may do anything
    if kind in UNMOVED:
        return before  # type: ignore[no-any-return]
    if kind is nn.Flatten:
        return flattened(before, layer.start_dim)  # type: ignore[arg-type]
    if kind is nn.Linear:
        weight = layer.get_parameter("weight").detach().double()
        return linear(before, weight, functional.linear)
    if kind is nn.Conv2d and layer.padding_mode == "zeros":
        return linear(before, _kernel(layer), _convolution(layer))
    if kind is nn.BatchNorm2d and layer.track_running_stats:
        return _normalised(node, before, known, parts)
    if kind in POOLS:
        return POOLS[kind](layer, before)
    raise ModelError(f"no slope is known of {layer}; replace it, or leave the certificate out")


def _kernel(layer: nn.Module) -> Tensor:
    return layer.get_parameter("weight").detach().double()


def _convolution(layer: Any) -> Callable[[Tensor, Tensor], Tensor]:
    def call(units: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(
            units, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups
        )

    return call


def _normalised(
    node: fx.Node, before: Slope, known: Mapping[fx.Node, Any], parts: Mapping[str, nn.Module]
) -> Slope:
    """A batch norm, folded into the convolution before it where nothing else takes its output."""
    layer = parts[str(node.target)]
    variance = layer.get_buffer("running_var").double()
    scale = 1 / (variance + float(layer.eps)).sqrt()  # type: ignore[arg-type]
    if layer.affine:
        scale = scale * layer.get_parameter("weight").detach().double().abs()
    scale = up(scale, 4)
    source = node.args[0]
    first = parts.get(str(source.target)) if source.op == "call_module" else None  # type: ignore[union-attr]
    if type(first) is nn.Conv2d and first.padding_mode == "zeros" and len(source.users) == 1:  # type: ignore[union-attr]
        weight = _kernel(first) * scale[:, None, None, None]
        return linear(known[source.args[0]], weight, _convolution(first))  # type: ignore[union-attr, index]
    return times(before, scale[:, None, None])
