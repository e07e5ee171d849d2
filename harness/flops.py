"""Floating-point operations of one forward pass, with nothing left out unseen."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from harness.errors import ModelError
from harness.numerics import ROW_GROUP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from harness.tensors import Classifier

_aten = torch.ops.aten
FREE = frozenset({
    # normalisation, softmax, pooling, resizing, copying and indexing: a few operations an element
    _aten.native_layer_norm, _aten.native_batch_norm, _aten.native_group_norm,
    _aten._native_batch_norm_legit, _aten._native_batch_norm_legit_no_training,
    _aten.batch_norm, _aten.layer_norm,
    _aten._softmax, _aten._log_softmax, _aten._safe_softmax, _aten.logsumexp,
    _aten.max_pool2d_with_indices, _aten.avg_pool2d, _aten.adaptive_max_pool2d,
    _aten._adaptive_avg_pool2d, _aten.mean, _aten.sum, _aten.amax, _aten.amin, _aten.max,
    _aten.argmax, _aten.topk, _aten.sort, _aten.argsort, _aten.cumsum, _aten.any, _aten.all,
    _aten.searchsorted, _aten.bucketize,
    _aten.linalg_vector_norm, _aten.var_mean, _aten.var, _aten.std,
    _aten.upsample_bilinear2d, _aten.upsample_bicubic2d, _aten.upsample_nearest2d,
    _aten._upsample_bilinear2d_aa, _aten._upsample_bicubic2d_aa,
    _aten.cat, _aten.stack, _aten.constant_pad_nd, _aten.reflection_pad2d, _aten.roll, _aten.flip,
    _aten.index, _aten._unsafe_index, _aten.index_select, _aten.index_copy,
    _aten.index_add, _aten.index_add_,
    _aten.index_put, _aten.index_put_, _aten.gather, _aten.scatter, _aten.scatter_,
    _aten.scatter_add, _aten.nonzero, _aten.bincount, _aten.embedding, _aten.one_hot,
    _aten.clone, _aten.copy_, _aten._to_copy, _aten.contiguous, _aten.lift_fresh, _aten.as_strided_,
    _aten.empty, _aten.empty_like, _aten.new_empty, _aten.new_zeros, _aten.new_ones,
    _aten.zeros, _aten.zeros_like, _aten.ones, _aten.ones_like, _aten.full, _aten.full_like,
    _aten.arange, _aten.scalar_tensor, _aten.fill_, _aten.zero_, _aten.masked_fill,
    _aten.masked_fill_, _aten.tril, _aten.triu, _aten.repeat, _aten.item, _aten.eye,
    _aten.new_full, _aten._local_scalar_dense, _aten._unsafe_view,
    # random numbers
    _aten.native_dropout, _aten.bernoulli, _aten.bernoulli_, _aten.rand, _aten.rand_like,
    _aten.randn, _aten.randn_like, _aten.randint, _aten.randperm, _aten.uniform_, _aten.normal_,
    _aten.multinomial,
})  # fmt: skip
"""Operators that count as 0, as in the field's figures; products and convolutions never do."""


_GROUPED = _aten._grouped_mm
if _GROUPED not in flop_registry:

    @register_flop_formula(_GROUPED)
    def _grouped_flops(rows: tuple[int, ...], kernels: tuple[int, ...], *_: Any, **__: Any) -> int:
        """Every row meets the kernel of its group."""
        return 2 * math.prod(rows) * kernels[-1]


def count_flops(model: Classifier, image_shape: tuple[int, int, int], name: str) -> int:
    """Operations of one image's forward pass, multiply and add counted apart.

    Counted over a whole group of rows, so that no padding inside the model is.

    Args:
        model: In evaluation mode.
        image_shape: (channel, height, width).
        name: How the message calls it.

    Raises:
        ModelError: An operator that is neither in torch's flop counter nor known to be free.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    shape = (
        ROW_GROUP,
        *image_shape,
    )  # padding to whole groups of rows inside a model costs nothing
    found = _counted(model, {}, torch.zeros(shape, device=device), name)
    if found.is_grouped and device.type != "meta":
        # groups are padded, more for one image than for many; without numbers there is no padding
        with suppress(ModelError, NotImplementedError, RuntimeError):
            state = {key: value.to("meta") for key, value in _state(model)}
            return _counted(model, state, torch.zeros(shape, device="meta"), name).flops
    return found.flops


class _Count(NamedTuple):
    flops: int
    is_grouped: bool  # some product was of groups of rows


def _state(model: Classifier) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _counted(model: Classifier, state: dict[str, Tensor], images: Tensor, name: str) -> _Count:
    """The operations of each image, with other parameters and buffers than the model's own."""
    watch = _Watch()
    counter = FlopCounterMode(display=False)
    # the fused attention of the CPU has no formula in torch; its plain form has
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), watch, counter:
        functional_call(model, state, (images,))
    if watch.unknown:
        raise ModelError(
            f"{name}: no formula for the operations of {', '.join(sorted(watch.unknown))}; "
            "register one with torch.utils.flop_counter.register_flop_formula"
        )
    return _Count(int(counter.get_total_flops()) // ROW_GROUP, watch.is_grouped)


class _Watch(TorchDispatchMode):
    """Collects the operators that nobody can count, and sees grouped products."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unknown: set[str] = set()
        self.is_grouped = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_known(func):
            self.unknown.add(str(func))
        self.is_grouped |= func._overloadpacket is _GROUPED
        return func(*args, **(kwargs or {}))


def _is_known(func: Any) -> bool:
    if func._overloadpacket in flop_registry or func._overloadpacket in FREE:
        return True
    return torch.Tag.pointwise in func.tags or func.is_view
