"""Changes of training images, made on their device: keyed by seed and sample, never streamed.

Each function returns one that a `Training` takes as its `augment`; `in_turn` puts several together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from harness.tensors import Images, Noise

Augment: TypeAlias = Callable[[Images, Noise], Images]

GREY = 0.5
"""What a cut-out square is filled with."""


def unchanged(images: Images, noise: Noise) -> Images:  # noqa: ARG001 - the signature of `Augment`
    """The images as they are."""
    return images


def in_turn(steps: Sequence[Augment]) -> Augment:
    """Several changes, one after the other."""

    def augment(images: Images, noise: Noise) -> Images:
        for step in steps:
            images = step(images, noise)
        return images

    return augment


def translated(pixels: int) -> Augment:
    """Shift each image by up to some pixels each way, black coming in at the edges."""
    return _shifted(pixels, "constant", 1)


def cropped(padding: int) -> Augment:
    """Cut each image out of itself, mirrored at its edges by some pixels."""
    return _shifted(padding, "reflect", 4)


def flipped(images: Images, noise: Noise) -> Images:
    """Mirror every second image, left to right."""
    mirrored = _draws(noise, 2, 1)[:, :, None, None] < 0
    return torch.where(mirrored, images.flip(3), images)


def cut_out(size: int) -> Augment:
    """Make a square of each image grey (DeVries & Taylor, 2017, https://arxiv.org/abs/1708.04552).

    Its centre is anywhere in the image, so that part of it may lie outside.
    """

    def augment(images: Images, noise: Noise) -> Images:
        height, width = images.shape[2:]
        centres = (_draws(noise, 3, 2) + 1) / 2
        rows = _near(centres[:, 0] * height, height, size)[:, None, :, None]
        columns = _near(centres[:, 1] * width, width, size)[:, None, None, :]
        return images.masked_fill(rows & columns, GREY)

    return augment


def _near(centres: Tensor, length: int, size: int) -> Tensor:
    """Which places of a side lie in the square, for each image."""
    first = centres.floor() - size // 2
    places = torch.arange(length, device=centres.device)
    return (places >= first[:, None]) & (places < first[:, None] + size)


def _shifted(pixels: int, mode: str, step: int) -> Augment:
    def augment(images: Images, noise: Noise) -> Images:
        height, width = images.shape[2:]
        padded = functional.pad(images, (pixels,) * 4, mode=mode)
        shifts = ((_draws(noise, step, 2) + 1) / 2 * (2 * pixels + 1)).long()
        rows = shifts[:, :1] + torch.arange(height, device=images.device)
        columns = shifts[:, 1:] + torch.arange(width, device=images.device)
        return padded[
            torch.arange(len(images), device=images.device)[:, None, None, None],
            torch.arange(images.shape[1], device=images.device)[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]

    return augment


def _draws(noise: Noise, step: int, count: int) -> Tensor:
    """Some uniform numbers in [-1, 1) for each image: the first of its noise, no more."""
    return replace(noise, shape=(1, 1, count)).uniform(0, step=step).flatten(1)
