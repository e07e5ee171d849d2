"""What passes through a model run on: device, numbers, frozen parameters, padded batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from harness.errors import ModelError
from harness.modes import Numbers
from harness.tensors import Classifier, Images, Rows

T = TypeVar("T")

PAYS = 1.03
"""Gain in speed for which twice the images at once are worth their memory."""

ROW_GROUP = 8
"""Rows are padded to a multiple of this, so that a row's result does not depend on how many
others are left: matrix products take other code paths for very few rows."""


def resolve_device(name: str) -> torch.device:
    """The device that `--device` names; "auto" takes the first GPU, else the CPU."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_exact_float32() -> None:
    """Take float32 at its word on GPUs: no TF32 in products and convolutions."""
    _set_float32("ieee")
    torch.backends.cudnn.benchmark = False


def _set_float32(numbers: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = numbers
    torch.backends.cudnn.conv.fp32_precision = numbers  # type: ignore[attr-defined]


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode and without gradients of parameters; restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)  # noqa: FBT003 - torch's own signature
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter in wanted:
            parameter.requires_grad_(True)  # noqa: FBT003


def fastest_batch(run: Callable[[int], object], *, largest: int) -> int:
    """The number of images from which on more at once pass hardly faster, for two sizes in a row.

    Args:
        run: Passes that many images.
        largest: Most that make sense.
    """
    size, chosen, best, is_doubted = ROW_GROUP, ROW_GROUP, 0.0, False
    while size <= max(largest, ROW_GROUP):
        reached = _images_a_second(run, size)
        if reached >= best * PAYS:
            chosen, best, is_doubted = size, reached, False
        elif is_doubted or not reached:
            break
        else:
            is_doubted = True  # other work on the machine may have slowed this one size
        size *= 2
    return chosen


def _images_a_second(run: Callable[[int], object], size: int) -> float:
    """The better of two tries; 0 where memory does not suffice."""
    fastest = float("inf")
    try:
        for _ in range(2):
            start = time.perf_counter()
            run(size)
            fastest = min(fastest, time.perf_counter() - start)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or size == ROW_GROUP:
            raise
        return 0.0
    return size / fastest


class Batches:
    """How many images go through a model at once: fewer, for good, where memory ran out.

    Rows are padded to whole groups, so that a row's result does not depend on how many others
    there are; bucketed, to a power of two, so that few shapes are compiled or captured.

    Attributes:
        size: Most images of one pass.
        group: Consecutive images that the model couples: passes are made of whole groups, and
            nothing is padded; 1 where each image stands alone.
    """

    def __init__(self, size: int, *, is_bucketed: bool = False, group: int = 1) -> None:
        self.group = group
        self.size = max(group, size - size % group)
        self._is_bucketed = is_bucketed
        self._smallest = group if group > 1 else ROW_GROUP

    def over(self, images: Images, run: Callable[[Tensor, int], T]) -> list[T]:
        """What `run` gives for each batch: called with padded rows and the number of true ones.

        Raises:
            torch.OutOfMemoryError: Not even the smallest batch fits.
        """
        found: list[T] = []
        everything = torch.arange(len(images), device=images.device)
        start = 0
        while start < len(images):
            rows = everything[start : start + self.size]
            try:
                found.append(run(self.padded(rows), len(rows)))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self.size <= self._smallest:
                    raise
                half = self.size // 2
                self.size = max(self._smallest, half - half % self.group)
                continue
            start += len(rows)
        return found

    def padded(self, rows: Rows) -> Tensor:
        """The rows, with the last one repeated."""
        if self.group > 1:
            return rows
        wanted = len(rows) + -len(rows) % ROW_GROUP
        if self._is_bucketed:
            wanted = max(ROW_GROUP, 2 ** (len(rows) - 1).bit_length())
        return torch.cat([rows, rows[-1:].expand(wanted - len(rows))])


def is_out_of_memory(error: Exception) -> bool:
    """Of the device, or of the CPU, whose allocator raises a plain RuntimeError."""
    is_known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_known or "can't allocate memory" in str(error)


@contextmanager
def in_numbers(numbers: Numbers, device: torch.device) -> Iterator[None]:
    """Passes in other numbers than exact float32, for gradients alone."""
    if numbers == "bfloat16-gradients":
        # frozen parameters are never cached, and CUDA graphs refuse the cache
        with torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False):
            yield
        return
    if numbers == "tf32":
        _set_float32("tf32")
    try:
        yield
    finally:
        if numbers == "tf32":
            _set_float32("ieee")


def check_classifier(model: Classifier, images: Images, num_classes: int, name: str) -> None:
    """Refuse a model that breaks the contract, before any attack starts.

    Args:
        model: In evaluation mode.
        images: A few real ones.
        num_classes: Length that its logits must have.
        name: How the message calls it.

    Raises:
        ModelError: Kept training mode, an exception, a wrong shape or type, or NaN.
    """
    training = [path or "the model" for path, module in model.named_modules() if module.training]
    if training:
        raise ModelError(
            f"{name}: {training[0]} stays in training mode after eval(); "
            "do not override train() or set training=True inside the model"
        )
    padded = images[Batches(len(images)).padded(torch.arange(len(images), device=images.device))]
    try:
        with torch.no_grad():
            logits = model(padded)
    except Exception as error:
        shape = tuple(images.shape[1:])
        raise ModelError(
            f"{name}: the forward pass of images of shape {shape} in [0, 1] raised "
            f"{type(error).__name__}: {error}; resize inside the model if it wants another size"
        ) from error
    _check_logits(logits, (len(padded), num_classes), name)


def _check_logits(logits: object, shape: tuple[int, int], name: str) -> None:
    if not isinstance(logits, Tensor):
        raise ModelError(f"{name}: returned {type(logits).__name__}; return the logits alone")
    if tuple(logits.shape) != shape:
        raise ModelError(
            f"{name}: logits of shape {tuple(logits.shape)} where {shape} was expected; "
            f"build the model for {shape[1]} classes (context.num_classes)"
        )
    if logits.dtype != torch.float32:
        raise ModelError(f"{name}: logits are {logits.dtype}; return float32")
    if not logits.isfinite().all():
        raise ModelError(
            f"{name}: {int((~logits.isfinite()).sum())} logits of real images are NaN or "
            "infinite; check the weights and the normalisation"
        )
