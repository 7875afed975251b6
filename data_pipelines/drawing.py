"""The pixels of the toy world: coloured, textured shapes on a light ground."""

import io
import math
import textwrap
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFont

SIDE = 64
"""Side of a drawing, in pixels."""
SUPERSAMPLING = 4
"""Shapes are drawn this much larger and then reduced, so that their edges are smooth."""
COLOURS = {
    "red": (219, 30, 45),
    "yellow": (250, 200, 0),
    "green": (25, 150, 60),
    "blue": (30, 80, 230),
    "purple": (125, 30, 175),
    "pink": (255, 125, 190),
    "brown": (135, 80, 35),
    "black": (30, 30, 35),
}
SIZES = {"small": 0.16, "large": 0.24}
"""From the centre of a shape to its furthest point, as a share of the side."""
TEXTURES = ("plain", "striped", "dotted", "checked")
TEXTURE_PERIOD = 7
"""Pixels from one stripe, dot or pair of checks to the next, whatever the size of the shape."""
LAYOUTS: dict[str, tuple[tuple[float, float], ...]] = {
    "alone": ((0.5, 0.5),),
    "row": ((0.25, 0.5), (0.75, 0.5)),
    "column": ((0.5, 0.25), (0.5, 0.75)),
    "top left": ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75)),
    "top right": ((0.75, 0.25), (0.25, 0.25), (0.75, 0.75)),
    "bottom left": ((0.25, 0.75), (0.75, 0.75), (0.25, 0.25)),
    "bottom right": ((0.75, 0.75), (0.25, 0.75), (0.75, 0.25)),
}
"""Where the centres lie. Of three shapes, the first is the corner, then its row, then its column.

Read in this order, one layout and its shapes are the only description of a scene.
"""
FREEDOM = {"alone": (0.2, 0.2), "row": (0.0, 0.16), "column": (0.16, 0.0)}
"""How far a whole layout may move from the middle, each way; of three shapes, not at all."""


class Shape(NamedTuple):
    """One shape of a scene: what a caption says of it, and where it is."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    """Of the centre, from the left, as a share of the side."""
    y: float
    """Of the centre, from the top, as a share of the side."""


def draw(shapes: Sequence[Shape], rng: np.random.Generator) -> Image.Image:
    """Return the picture of a scene; its ground and small turns of its shapes are random."""
    picture = _ground(rng)
    for shape in shapes:
        _add(picture, shape, turn=rng.uniform(-0.15, 0.15))
    return picture.reduce(SUPERSAMPLING)


def draw_text(text: str) -> Image.Image:
    """Return a white picture with nothing but writing on it."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    lines = "\n".join(textwrap.wrap(text, 12))
    font = ImageFont.load_default(size=9)
    ImageDraw.Draw(picture).multiline_text((2, 1), lines, fill="black", font=font, spacing=0)
    return picture


def jpeg(picture: Image.Image, quality: int = 92) -> bytes:
    """Return the picture as JPEG bytes, with colour at full resolution."""
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def republished(picture: Image.Image, rng: np.random.Generator) -> bytes:
    """Return the picture as another site shows it: what it shows is the same, all bytes are others.

    Up to 1 % is cut off at each border; it has 0.75 to 1.5 times the size, is up to 10 % lighter or
    darker, has up to 10 % more or less contrast, and is compressed again, quality 40 to 89. Of what
    people do to copies (Douze et al. 2021, DISC21) these are the edits that PDQ is made for.
    """
    left, top, right, bottom = rng.uniform(0, 0.01, size=4)
    width, height = picture.size
    inner = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    size = (round(width * (scale := rng.uniform(0.75, 1.5))), round(height * scale))
    copy = picture.resize(size, Image.Resampling.BICUBIC, box=inner)
    for edit in (ImageEnhance.Brightness, ImageEnhance.Contrast):
        copy = edit(copy).enhance(rng.uniform(0.9, 1.1))
    return jpeg(copy, quality=int(rng.integers(40, 90)))


def _ground(rng: np.random.Generator) -> Image.Image:
    """Return a light ground that shades a little from top to bottom."""
    ends = rng.integers(232, 256, size=(2, 1, 3))
    ramp = np.linspace(0, 1, SIDE)[:, None, None]  # [side, 1, 1]
    rows = ends[0] + (ends[1] - ends[0]) * ramp  # [side, 1, 3]
    column = Image.fromarray(rows.round().astype(np.uint8))
    whole = (SIDE * SUPERSAMPLING, SIDE * SUPERSAMPLING)
    return column.resize(whole, Image.Resampling.NEAREST)


def _add(picture: Image.Image, shape: Shape, *, turn: float) -> None:
    """Draw one shape into the picture: a full-colour rim around a textured inside."""
    radius = SIZES[shape.size] * picture.width
    half = math.ceil(radius) + SUPERSAMPLING
    outlines = [_place(outline, radius, turn, half) for outline in OUTLINES[shape.shape]]
    mask = Image.new("L", (2 * half, 2 * half))
    pen = ImageDraw.Draw(mask)
    for outline, inside in zip(outlines, (255, 0), strict=False):
        pen.polygon(outline, fill=inside)
    light = ImageChops.multiply(mask, _texture(shape.texture, 2 * half))
    pen = ImageDraw.Draw(light)
    for outline in outlines:
        # A texture of light patches would eat the silhouette where a patch meets the light ground.
        pen.line([*outline, outline[0]], fill=0, width=2 * SUPERSAMPLING)
    corner = (round(shape.x * picture.width) - half, round(shape.y * picture.width) - half)
    colour = COLOURS[shape.colour]
    picture.paste(colour, corner, mask)
    picture.paste(tuple(255 - (255 - c) // 6 for c in colour), corner, light)


def _place(
    outline: NDArray[np.float64], radius: float, turn: float, centre: float
) -> list[tuple[float, float]]:
    cos, sin = math.cos(turn), math.sin(turn)
    points = outline @ np.array([[cos, sin], [-sin, cos]]) * radius + centre
    return [(x, y) for x, y in points.tolist()]


@cache
def _texture(name: str, side: int) -> Image.Image:
    """Return where the inside of a shape is light: 255 there, 0 elsewhere."""
    period = TEXTURE_PERIOD * SUPERSAMPLING
    # Phases count from the middle, so that a texture looks the same on every shape.
    phase = (np.arange(side) - side / 2) / period  # [side]
    x, y = phase[None, :], phase[:, None]
    if name == "striped":
        light = np.broadcast_to((y + 0.25) % 1 < 0.5, (side, side))
    elif name == "dotted":
        light = ((x + 0.5) % 1 - 0.5) ** 2 + ((y + 0.5) % 1 - 0.5) ** 2 < 0.34**2
    elif name == "checked":
        light = (x % 1 < 0.5) ^ (y % 1 < 0.5)
    else:
        light = np.zeros((side, side), bool)
    return Image.fromarray(light.astype(np.uint8) * 255)


def _arc(start: float, end: float, radius: float = 1.0, x: float = 0.0) -> NDArray[np.float64]:
    """Return points on a circle, from one angle to another in degrees; 0 is right, 90 is down."""
    angles = np.radians(np.linspace(start, end, 60))
    return np.stack([x + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _star() -> NDArray[np.float64]:
    angles = np.radians(np.arange(10) * 36 - 90)
    radii = np.where(np.arange(10) % 2, 0.45, 1.0)[:, None]
    return radii * np.stack([np.cos(angles), np.sin(angles)], axis=1) + [0, 0.05]


def _heart() -> NDArray[np.float64]:
    t = np.linspace(0, 2 * np.pi, 80)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y - 2.5], axis=1) / 17


def _cross() -> NDArray[np.float64]:
    arm, width = 0.94, 0.38
    corner = [(width, -arm), (width, -width), (arm, -width)]
    turns = [(x, y) for x, y in corner]
    for _ in range(3):
        corner = [(-y, x) for x, y in corner]
        turns += corner
    return np.array(turns)


def _moon() -> NDArray[np.float64]:
    """Return a crescent that opens to the right: a disc without a smaller disc."""
    points = np.concatenate([_arc(48, 312), _arc(289, 71, radius=0.79, x=0.41)])
    return points + np.array([0.12, 0])


OUTLINES: dict[str, tuple[NDArray[np.float64], ...]] = {
    "circle": (_arc(0, 360) * 0.92,),
    "square": (np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.82,),
    "triangle": (np.array([(0, -0.92), (1, 0.8), (-1, 0.8)]),),
    "star": (_star(),),
    "heart": (_heart(),),
    "cross": (_cross(),),
    "ring": (_arc(0, 360), _arc(0, 360) * 0.45),
    "moon": (_moon(),),
}
"""Each shape as an outline, and its hole where it has one; the centre is 0 and the radius 1."""
