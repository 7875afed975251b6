"""Pictures for training, changed at random: a crop, outlines, one affine map, one colour matrix."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from vlp.errors import UserError

WHITE = (255, 255, 255)
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
"""RGB to luma and two axes of colour (NTSC); a turn of the last two changes the hue."""
RGB = np.linalg.inv(YIQ)
LINE_CHANGE = (0.08, 0.3)
"""Change of a channel, as a share of the full range, from which on an outline is drawn."""
LINE_RISE = 8
"""An outline is whole where the change is an eighth of the full range above that."""
LINE_DARKNESS = (0.6, 1.0)
WIDE_LINES = 0.3
"""Share of outlines 4 pixels wide instead of 2."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is changed about a training picture. The defaults are CLIP's: a crop of 90 to 100 %.

    Ranges are drawn evenly, those of factors on a logarithmic scale.
    """

    scale: tuple[float, float] = (0.9, 1.0)
    """Share of the area that a crop takes."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a crop."""
    flip: float = 0.0
    """Share of pictures mirrored left to right."""
    rotate: float = 0.0
    """Largest turn either way, in degrees; here and below, what comes into view is white."""
    shear: float = 0.0
    """Largest slant either way, in degrees."""
    zoom: tuple[float, float] = (1.0, 1.0)
    """Factor on the size of what is shown; below 1 leaves a white border."""
    stretch: float = 0.0
    """Largest change of width against height: 0.15 draws a factor from exp(-0.15) to exp(0.15)."""
    shift: float = 0.0
    """Largest shift either way along both axes, as a share of the side."""
    brightness: float = 0.0
    """Largest change either way, as a share of the full range."""
    contrast: float = 0.0
    """Largest change: 0.3 draws a factor from exp(-0.3) to exp(0.3). Likewise the saturation."""
    saturation: float = 0.0
    hue: float = 0.0
    """Largest turn of the colour circle either way, as a share of it, up to 0.5."""
    grayscale: float = 0.0
    """Share of pictures without colour."""
    outline: float = 0.0
    """Share of pictures with dark lines drawn where colours change, as in comics."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"The crop scale is {self.scale}. Write two shares, as 0.9 1.0.")
        for name in ("ratio", "zoom"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UserError(f"The range {name} is {low} {high}. Write two factors, as 0.8 1.2.")
        for name in ("flip", "grayscale", "shift", "outline"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"The share {name} is {getattr(self, name)}. Write 0 to 1.")
        if not 0 <= self.hue <= 0.5:
            raise UserError(f"The hue is {self.hue}. Write 0 to 0.5.")

    @property
    def moves(self) -> bool:
        """Whether there is an affine map beside the crop."""
        still = self.rotate == self.shear == self.stretch == self.shift == 0
        return not still or self.zoom != (1.0, 1.0)

    @property
    def changes(self) -> bool:
        """Whether anything follows the crop."""
        return self.flip > 0 or self.outline > 0 or self.moves or self.recolours

    @property
    def recolours(self) -> bool:
        """Whether colours change."""
        return any((self.brightness, self.contrast, self.saturation, self.hue, self.grayscale))


def change(image: Image.Image, options: Augmentation, rng: np.random.Generator) -> Image.Image:
    """Return a cropped and resized picture after the random changes that follow the crop."""
    if rng.random() < options.flip:
        image = ImageOps.mirror(image)
    if options.outline and rng.random() < options.outline:
        image = Image.fromarray(outlined(np.array(image), rng))
    if options.moves:
        data = tuple(affine_map(image.width, image.height, options, rng).ravel().tolist())
        image = image.transform(
            image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=WHITE
        )
    if options.recolours:
        image = image.convert("RGB", tuple(colour_matrix(options, rng).ravel().tolist()))
    return image


def crop_box(
    width: int, height: int, options: Augmentation, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of a crop of random area, ratio and place.

    Inception's way, as torchvision's RandomResizedCrop: ten draws, else the largest centred crop.
    """
    least, narrowest = options.scale[0], math.log(options.ratio[0])
    areas, ratios = options.scale[1] - least, math.log(options.ratio[1]) - narrowest
    x, y, *draws = rng.random(22).tolist()  # in one call: each costs as much as all of them
    for of_area, of_ratio in zip(draws[::2], draws[1::2], strict=True):
        area = width * height * (least + of_area * areas)
        ratio = math.exp(narrowest + of_ratio * ratios)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * options.ratio[1])) or 1
    h = min(height, round(width / options.ratio[0])) or 1
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def outlined(
    pixels: UInt8[np.ndarray, "height width 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the picture with dark lines where a 3 x 3 neighbourhood changes colour.

    How large a change makes a line, how dark and how wide it is are drawn once for a picture.
    """
    smallest_change, darkness = rng.uniform(*LINE_CHANGE), rng.uniform(*LINE_DARKNESS)
    red, green, blue = np.moveaxis(
        _largest_nearby(pixels) - (255 - _largest_nearby(255 - pixels)), 2, 0
    )
    change = np.maximum(np.maximum(red, green), blue) / np.float32(255)  # [height, width]
    line = np.clip((change - smallest_change) * LINE_RISE, 0, 1)
    if rng.random() < WIDE_LINES:
        line = _largest_nearby(line)
    return (pixels * (1 - darkness * line)[..., None]).astype(np.uint8)


def affine_map(
    width: int, height: int, options: Augmentation, rng: np.random.Generator
) -> Float[np.ndarray, "2 3"]:
    """Return the map from a pixel of the view to the pixel of the picture that it shows."""
    angle = math.radians(rng.uniform(-options.rotate, options.rotate))
    slant = math.tan(math.radians(rng.uniform(-options.shear, options.shear)))
    zoom = _drawn_factor(*options.zoom, rng)
    stretch = math.exp(rng.uniform(-options.stretch, options.stretch) / 2)
    shift = rng.uniform(-options.shift, options.shift, 2) * (width, height)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.array([[1.0, slant], [0.0, 1.0]]) / zoom
    matrix = matrix @ np.diag([1 / stretch, stretch])
    centre = np.array([width, height]) / 2
    return np.column_stack([matrix, centre - matrix @ (centre + shift)])


def colour_matrix(options: Augmentation, rng: np.random.Generator) -> Float[np.ndarray, "3 4"]:
    """Return the matrix on (red, green, blue, 1) that turns hue and changes the rest."""
    hue = 2 * math.pi * rng.uniform(-options.hue, options.hue)
    saturation = math.exp(rng.uniform(-options.saturation, options.saturation))
    contrast = math.exp(rng.uniform(-options.contrast, options.contrast))
    brightness = rng.uniform(-options.brightness, options.brightness)
    if rng.random() < options.grayscale:
        saturation = 0.0
    cos, sin = math.cos(hue) * saturation, math.sin(hue) * saturation
    matrix = contrast * RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ YIQ
    middle = np.full(3, 127.5)  # contrast and brightness are around mid-grey
    return np.column_stack([matrix, middle + 255 * brightness - matrix @ middle])


def _largest_nearby(values: np.ndarray) -> np.ndarray:
    """Return the largest value of each 3 x 3 neighbourhood, less of it at the border."""
    for axis in (0, 1):
        largest = values.copy()
        before, after = np.moveaxis(values, axis, 0), np.moveaxis(largest, axis, 0)
        np.maximum(after[1:], before[:-1], out=after[1:])
        np.maximum(after[:-1], before[1:], out=after[:-1])
        values = largest
    return values


def _drawn_factor(low: float, high: float, rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))
