"""The copy of a model that attacks climb: the same function, cheaper to differentiate."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from harness.errors import UsageError
from harness.modes import Mode
from harness.numerics import frozen
from harness.passes import Surrogate
from harness.seeing import input_gradient, seen
from harness.tensors import Classifier, Images, Logits, RoutedClassifier

LOGITS_AGREE = 1e-3
"""Largest difference of logits, as a share of their largest size."""
GRADIENTS_AGREE = 0.05
"""Largest difference of an image's gradient, as a share of its length: where rounding moves a
ReLU across its kink, single pixels differ."""

GRAPHS = 128
"""Most graphs of one compiled model: for each size of a batch, view and numbers, with gradient and
without."""


def prepared(model: Classifier, images: Images, mode: Mode) -> Surrogate | None:
    """What is climbed in place of a model; None where there is nothing cheaper.

    Args:
        model: On its device; left as it is, and its parameters are shared.
        images: A few real ones, on which the copy must agree with the model.
        mode: How gradients are computed.

    Raises:
        UsageError: The mode does not fit the model or the device.
    """
    with frozen(model):
        climbed = folded(model, images)
        if mode.is_compiled:
            climbed = _compiled(climbed if climbed is not model else _own_twin(model))
        if mode.is_captured:
            climbed = _captured(climbed, images)
    if climbed is model and mode.numbers == "float32":
        return None
    return Surrogate(climbed, mode.numbers)


def folded(model: Classifier, images: Images) -> Classifier:
    """A copy with batch norms folded into the convolutions before them, or the model itself.

    Folded is what a trace of the forward pass, of the whole or else of its parts, shows to be
    called in a row and nowhere else, if the fused convolution gives what the two gave; the copy
    is taken if its logits and gradients agree with the model's.
    """
    try:
        twin = _twin(model)
    except Exception:  # noqa: BLE001 - a module that cannot be copied is attacked as it is
        return model
    pairs = list(_in_a_row(twin))
    replaced = sum(_fold(twin, first, second) for first, second in pairs)
    if not replaced or not _agree(model, twin, images):
        return model
    return twin


def _twin(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers are the model's own.

    Raises:
        TypeError: Some module copies itself as itself: changing the copy would change the model.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    if not set(model.modules()).isdisjoint(twin.modules()):
        raise TypeError("a module's copy is the module itself")
    return twin


def _own_twin(model: nn.Module) -> nn.Module:
    """A copy of a model that is to be changed."""
    try:
        return _twin(model)
    except Exception as error:  # a module of a plugin may raise anything
        raise UsageError(
            f"--compile needs a copy of the model, and copying it raised {type(error).__name__}: "
            f"{error}; leave it out here"
        ) from error


class _Tracer(fx.Tracer):
    """Convolutions and batch norms stay whole, whoever wrote them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | nn.BatchNorm2d) or super().is_leaf_module(
            m, module_qualified_name
        )


def _in_a_row(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of convolutions, each with the batch norm that alone takes its output."""
    try:
        graph = _Tracer().trace(model)
    except Exception:  # noqa: BLE001 - control flow that depends on images: try its parts
        for name, child in model.named_children():
            for first, second in _in_a_row(child):
                yield f"{name}.{first}", f"{name}.{second}"
        return
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(node.target for node in calls)
    for node in calls:
        before = node.args[0] if node.args else None
        if (
            isinstance(before, fx.Node)
            and before.op == "call_module"
            and len(before.users) == 1
            and times[node.target] == times[before.target] == 1
        ):
            yield str(before.target), str(node.target)


def _fold(model: nn.Module, first: str, second: str) -> bool:
    """Fold a batch norm into the convolution before it, if that gives the same."""
    convolution, norm = model.get_submodule(first), model.get_submodule(second)
    if not (isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
        return False
    if norm.running_mean is None or _is_special(convolution) or _is_special(norm):
        return False
    rest = _activation(norm)
    fused = fuse_conv_bn_eval(convolution, norm).requires_grad_(False)  # noqa: FBT003
    fused = fused.to(memory_format=torch.channels_last)
    own = torch.Generator().manual_seed(0)
    sample = torch.rand(2, convolution.in_channels, 9, 9, generator=own)
    sample = sample.to(convolution.weight.device)
    with suppress(RuntimeError), torch.no_grad():
        expected, found = norm(convolution(sample)), rest(fused(sample))
        if torch.allclose(expected, found, atol=LOGITS_AGREE, rtol=LOGITS_AGREE):
            model.set_submodule(first, fused)
            model.set_submodule(second, rest)
            return True
    return False


def _activation(norm: nn.Module) -> nn.Module:
    """What a norm layer does after normalising: timm puts dropout and activation inside."""
    return nn.Sequential(*norm.children()).eval() if list(norm.children()) else nn.Identity()


def _is_special(module: nn.Module) -> bool:
    """Does more, or otherwise, than its class and its parameters say."""
    forward = module._forward_hooks or module._forward_pre_hooks  # noqa: SLF001 - no other way
    backward = module._backward_hooks or module._backward_pre_hooks  # noqa: SLF001
    return bool(forward or backward) or is_parametrized(module) or module.training


def _agree(model: Classifier, twin: Classifier, images: Images) -> bool:
    logits, gradient = _ascent(model, images)
    other_logits, other_gradient = _ascent(twin, images)
    scale = logits.abs().max().clamp(min=1)
    if float((logits - other_logits).abs().max() / scale) > LOGITS_AGREE:
        return False
    lengths: Tensor = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
    apart: Tensor = (gradient - other_gradient).flatten(1).norm(dim=1) / lengths
    return float(apart.median()) <= GRADIENTS_AGREE


def _ascent(model: Classifier, images: Images) -> tuple[Logits, Images]:
    """Logits, and the gradient of the best minus the mean."""
    points = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = seen(model, points).logits
        gradient = input_gradient(logits.amax(1) - logits.mean(1), points)
    return logits.detach(), gradient


def _compiled(twin: nn.Module) -> nn.Module:
    """The copy with its forward pass compiled, once for each size of a batch and each mode."""
    torch.compiler.reset()  # of the model before this one
    torch.compiler.config.recompile_limit = GRAPHS  # beyond it, passes run as they are
    if isinstance(twin, RoutedClassifier):
        twin.routed = torch.compile(twin.routed, dynamic=False)  # type: ignore[method-assign]
        return twin
    twin.forward = torch.compile(twin.forward, dynamic=False)
    return twin


def _captured(model: nn.Module, images: Images) -> nn.Module:
    if images.device.type != "cuda":
        raise UsageError("--cuda-graphs needs a CUDA device; leave it out here")
    if isinstance(model, RoutedClassifier):
        raise UsageError("--cuda-graphs is for dense models; leave it out for routed ones")
    return Captured(model)


class Captured(nn.Module):
    """A model whose passes are replayed as CUDA graphs, one for each size of a batch and numbers.

    Args:
        model: Frozen, in evaluation mode, on a CUDA device.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._graphs: dict[tuple[object, ...], Callable[[Tensor], Tensor]] = {}

    def forward(self, images: Images) -> Logits:
        """The logits; passes without gradient go through the model as it is."""
        if not images.requires_grad:
            return self.model(images)  # type: ignore[no-any-return]
        numbers = torch.is_autocast_enabled("cuda"), torch.backends.cuda.matmul.fp32_precision
        key = (*images.shape, *numbers)  # a graph replays the numbers that it was captured in
        if key not in self._graphs:
            sample = images.detach().clone().requires_grad_()
            graphed = torch.cuda.make_graphed_callables(self._plain, (sample,))
            self._graphs[key] = graphed  # type: ignore[assignment]
        return self._graphs[key](images).clone()

    def _plain(self, images: Images) -> Logits:
        return self.model(images)  # type: ignore[no-any-return]
