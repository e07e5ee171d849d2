"""Corruptions of Hendrycks & Dietterich (2019, https://arxiv.org/abs/1903.12261), by a library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from harness.api import AttackError, did_you_mean
from harness.tensors import Images, Labels, Noise, Objective
from harness.threat import ThreatModel

OWN_SEED = frozenset({"glass-blur", "impulse-noise"})
"""Those that draw from a generator of their own, which takes a seed."""
BROKEN = frozenset({"spatter"})
"""At severity 1 it divides by zero for some seeds and gives a black image."""
SMALLEST = 32
"""Pixels of a side, from which on the library works."""


def corrupt(
    objective: Objective,  # noqa: ARG001 - a corruption looks at no model
    images: Images,
    labels: Labels,  # noqa: ARG001 - nor at labels
    threat: ThreatModel,
    *,
    noise: Noise,
    name: str,
) -> Images:
    """The images with one corruption, at the severity of the threat model.

    Args:
        objective: Not used.
        images: In [0, 1], three channels, at least 32 pixels wide and high.
        labels: Not used.
        threat: Of norm "severity", 1 to 5.
        noise: Gives each sample its seed, the same at all severities.
        name: Of the corruption, such as "gaussian-noise".

    Raises:
        AttackError: The library is not installed, has no such corruption, or cannot work on
            images of this shape; or the threat model is a ball.
    """
    library = _library()
    _check(library, images, threat, name)
    seeds = ((noise.uniform(0).flatten(1)[:, 0] + 1) * 2**23).long().tolist()
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    with _numpy_left_alone():
        drawn = [
            _one(library, image, int(threat.epsilon), name, seed)
            for image, seed in zip(pixels, seeds, strict=True)
        ]
    corrupted = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)
    return corrupted.to(images.device, images.dtype).contiguous() / 255


def names(library: Any) -> list[str]:
    """The corruptions that can be used, spelt as in suites."""
    known = [name.replace("_", "-") for name in library.get_corruption_names("all")]
    return [name for name in known if name not in BROKEN]


def _library() -> Any:
    try:
        import imagecorruptions  # noqa: PLC0415 - an extra that not everybody has
    except ImportError as error:
        raise AttackError(
            f"corruptions need the library imagecorruptions-imaug ({error}): "
            "pip install 'moe-robustness-harness[corruptions]'"
        ) from error
    return imagecorruptions


def _check(library: Any, images: Images, threat: ThreatModel, name: str) -> None:
    if name not in names(library):
        raise AttackError(f"corruption {name!r} is not known{did_you_mean(name, names(library))}")
    if threat.norm != "severity":
        raise AttackError(
            f"corruption {name!r} stays in no {threat.norm} ball: use a suite of norm 'severity'"
        )
    channels, height, width = images.shape[1:]
    if channels != 3 or min(height, width) < SMALLEST:  # noqa: PLR2004 - red, green, blue
        raise AttackError(
            f"corruption {name!r} needs colour images of at least {SMALLEST} pixels, not "
            f"{channels}x{height}x{width}"
        )


def _one(
    library: Any, image: np.ndarray[Any, Any], severity: int, name: str, seed: int
) -> np.ndarray[Any, Any]:
    np.random.seed(seed)  # noqa: NPY002 - what the library draws from; restored afterwards
    own = {"seed": seed} if name in OWN_SEED else {}
    corrupted: np.ndarray[Any, Any] = library.corrupt(
        image, severity=severity, corruption_name=name.replace("-", "_"), **own
    )
    return corrupted


@contextmanager
def _numpy_left_alone() -> Iterator[None]:
    """Put numpy's global generator back as it was found."""
    state = np.random.get_state()  # noqa: NPY002 - the library knows no other
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002 - the same
