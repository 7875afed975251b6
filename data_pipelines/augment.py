"""Pictures for training: cropped, resized and changed at random, all from one generator."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

from vlp.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is changed about a training picture. The defaults are CLIP's: a crop of 90 to 100 %."""

    scale: tuple[float, float] = (0.9, 1.0)
    """Share of the area that a crop takes."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a crop."""
    flip: float = 0.0
    """Share of pictures mirrored left to right."""
    rotate: float = 0.0
    """Largest turn either way, in degrees; what comes into view is white."""
    brightness: float = 0.0
    """Largest change: 0.4 draws a factor from 0.6 to 1.4. Likewise contrast and saturation."""
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """Largest shift either way, as a share of the colour circle, up to 0.5."""
    grayscale: float = 0.0
    """Share of pictures without colour."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"The crop scale is {self.scale}. Write two shares, as 0.9 1.0.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"The crop ratio is {self.ratio}. Write two ratios, as 0.75 1.33.")
        for name in ("flip", "grayscale"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"The share {name} is {getattr(self, name)}. Write 0 to 1.")
        if not 0 <= self.hue <= 0.5:
            raise UserError(f"The hue shift is {self.hue}. Write 0 to 0.5.")


def augment(
    image: Image.Image, size: tuple[int, int], options: Augmentation, rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """Return an upright RGB picture as a training view of ``size`` (height, width) pixels."""
    if options.rotate:
        angle = rng.uniform(-options.rotate, options.rotate)
        image = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=(255, 255, 255))
    box = _crop(image.width, image.height, options, rng)
    # Crop first: `resize(box=...)` would read pixels outside the crop at its border.
    image = image.crop(box).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    if rng.random() < options.flip:
        image = ImageOps.mirror(image)
    image = _recolour(image, options, rng)
    return np.array(image)


def _crop(
    width: int, height: int, options: Augmentation, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return the box of a crop of random area, ratio and place (Inception's, as in torchvision)."""
    for _ in range(10):
        area = width * height * rng.uniform(*options.scale)
        ratio = np.exp(rng.uniform(*np.log(options.ratio)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            return int(left), int(top), int(left + w), int(top + h)
    # A picture too long or too tall for the ratio: the largest centred crop that has it.
    w = min(width, round(height * options.ratio[1])) or 1
    h = min(height, round(width / options.ratio[0])) or 1
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _recolour(image: Image.Image, options: Augmentation, rng: np.random.Generator) -> Image.Image:
    for strength, enhance in (
        (options.brightness, ImageEnhance.Brightness),
        (options.contrast, ImageEnhance.Contrast),
        (options.saturation, ImageEnhance.Color),
    ):
        if strength:
            image = enhance(image).enhance(max(0.0, rng.uniform(1 - strength, 1 + strength)))
    if options.hue:
        shift = round(rng.uniform(-options.hue, options.hue) * 255)
        hue, saturation, value = image.convert("HSV").split()
        hue = hue.point([(level + shift) % 256 for level in range(256)])
        image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    if rng.random() < options.grayscale:
        image = ImageOps.grayscale(image).convert("RGB")
    return image
