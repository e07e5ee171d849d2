"""The canvas of a suite: the bytes on which threat models live, drawn from images of any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

Fit = Literal["exact", "crop", "squash"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


class WrongSize(Exception):  # noqa: N818 - what is wrong with the image
    """An image is not as large as the canvas, and may not be resized."""


@dataclass(frozen=True)
class Canvas:
    """Size of a suite's images, and how others come to it.

    Attributes:
        channels, height, width: Of the canvas.
        fit: "exact" refuses other sizes; "crop" resizes the shorter side and cuts out the
            centre; "squash" resizes both sides without regard to the aspect ratio.
        resize: Pixels of the shorter side before the cut; 0 for those of the canvas.
        interpolation: Pillow's filter, with antialiasing.
    """

    channels: int
    height: int
    width: int
    fit: Fit = "exact"
    resize: int = 0
    interpolation: Interpolation = "bicubic"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channel, height, width)."""
        return self.channels, self.height, self.width

    def scaled(self, height: int, width: int) -> Canvas:
        """The same cut at another size, for attacks at a model's own input size."""
        fit: Fit = "squash" if self.fit == "exact" else self.fit
        resize = max(height, width, round(self.resize * height / self.height))
        return Canvas(self.channels, height, width, fit, resize, self.interpolation)

    def draw(self, image: Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The image as uint8 (channel, height, width).

        Sizes and the place of the cut are rounded as torchvision's Resize and CenterCrop round
        them, so that timm's evaluation transform gives the same bytes.

        Raises:
            WrongSize: Another size, where only the exact one will do.
        """
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns of palettes with transparency
        pixels = np.asarray(self._fitted(image.convert("L" if self.channels == 1 else "RGB")))
        if pixels.shape[:2] != (self.height, self.width):
            raise WrongSize(
                f"has {pixels.shape[0]}x{pixels.shape[1]} pixels, not {self.height}x{self.width}"
            )
        return pixels.reshape(self.height, self.width, self.channels).transpose(2, 0, 1)

    def _fitted(self, image: Image) -> Image:
        if self.fit == "exact":
            return image
        if self.fit == "squash":
            return self._resized(image, self.width, self.height)
        target = self.resize or min(self.height, self.width)
        width, height = image.size
        if width <= height:
            image = self._resized(image, target, int(target * height / width))
        else:
            image = self._resized(image, int(target * width / height), target)
        left = round((image.width - self.width) / 2)
        top = round((image.height - self.height) / 2)
        return image.crop((left, top, left + self.width, top + self.height))

    def _resized(self, image: Image, width: int, height: int) -> Image:
        from PIL.Image import Resampling  # noqa: PLC0415 - plans draw nothing

        if image.size == (width, height):
            return image
        return image.resize((width, height), Resampling[self.interpolation.upper()])
