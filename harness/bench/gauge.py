"""What a call costs here: seconds, memory, and the share of what this machine can do."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")
PROCESS = Path("/proc/self")


class Effort(NamedTuple):
    """What one call cost."""

    cpu_seconds: float  # of the whole process, all threads
    wall_seconds: float
    memory: int | None  # highest bytes above those held before; None where nobody can tell
    load: float | None  # average of this machine over the last minute


class Ceiling(NamedTuple):
    """The fastest float32 arithmetic that was seen here, in operations a second."""

    product: float  # of square matrices
    convolution: float  # 3x3

    @property
    def highest(self) -> float:
        """What others are measured by."""
        return max(self)


def seconds(effort: Effort, device: torch.device) -> float:
    """The seconds that count: wall time of a GPU, CPU time elsewhere, which neighbours spare."""
    return effort.wall_seconds if device.type == "cuda" else effort.cpu_seconds


def clock(device: torch.device) -> str:
    """How these seconds are called."""
    return "wall seconds" if device.type == "cuda" else "CPU seconds"


def memory_rule(device: torch.device) -> str:
    """What the memory of an effort is."""
    if device.type == "cuda":
        return "highest torch.cuda.max_memory_allocated above what was held before"
    return "highest resident memory of the process above its level before (VmHWM - VmRSS)"


def hardware(device: torch.device) -> str:
    """The name of what computes here."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gauged(call: Callable[[], Result], device: torch.device) -> tuple[Result, Effort]:
    """What a call returns, and its cost."""
    gc.collect()  # nobody pays for another's waste
    held = _held(device)
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    _wait(device)
    cpu_seconds, wall_seconds = time.process_time() - cpu, time.perf_counter() - wall
    highest = _highest(device)
    memory = None if held is None or highest is None else max(0, highest - held)
    return result, Effort(cpu_seconds, wall_seconds, memory, _load())


def ceiling(device: torch.device, *, budget: float = 1.0) -> Ceiling:
    """The best of several float32 matrix products and 3x3 convolutions.

    Args:
        device: Where.
        budget: Seconds for each of the two.
    """
    is_large = device.type == "cuda"
    side, batch = (8192, 512) if is_large else (1024, 64)
    left = torch.rand(side, side, device=device)
    images = torch.rand(batch, 64, 32, 32, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    kernel = torch.rand(64, 64, 3, 3, device=device)
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    return Ceiling(
        product=_best(lambda: left @ left, 2 * side**3, device, budget),
        convolution=_best(
            lambda: functional.conv2d(images, kernel, padding=1),
            2 * batch * 64 * 64 * 9 * 32 * 32,
            device,
            budget,
        ),
    )


def _best(
    call: Callable[[], torch.Tensor], operations: int, device: torch.device, budget: float
) -> float:
    """Operations a second of the fastest repetition."""
    fastest, end = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < end:
        _, effort = gauged(call, device)
        fastest = min(fastest, seconds(effort, device))
    return operations / fastest


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _load() -> float | None:
    with suppress(OSError, AttributeError):  # some systems do not know it
        return os.getloadavg()[0]
    return None


def _held(device: torch.device) -> int | None:
    """The bytes in use now, with the high-water mark set back to them."""
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError, AttributeError):  # freed memory back to the system, where glibc can
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (PROCESS / "clear_refs").write_text("5", encoding="utf-8")
    except OSError:  # not Linux, or forbidden
        return None
    return _status("VmRSS")


def _highest(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(key: str) -> int | None:
    with suppress(OSError):
        for line in (PROCESS / "status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None
