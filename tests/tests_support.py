"""Pictures and pairs that tests draw."""

import io

import numpy as np
from PIL import Image

from vlp.types import Sample

COLOURS = {"red": (220, 30, 30), "green": (30, 170, 60), "blue": (40, 70, 220), "black": (0, 0, 0)}


def picture(colour: str = "red", size: tuple[int, int] = (40, 32), noise: int = 0) -> bytes:
    """Return a PNG of one colour with coarse noise, so that no two are equal."""
    rng = np.random.default_rng(noise)
    blocks = rng.integers(-90, 90, (size[1] // 8 + 1, size[0] // 8 + 1, 3))
    coarse = blocks.repeat(8, 0).repeat(8, 1)[: size[1], : size[0]]
    pixels = np.array(COLOURS[colour]) + coarse
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def pairs(count: int) -> list[Sample]:
    """Return samples whose captions name the colour of their picture."""
    names = list(COLOURS)
    return [
        Sample(
            f"{i:05d}",
            picture(names[i % 4], noise=i),
            f"a {names[i % 4]} field, number {i}",
            {"colour": names[i % 4], "cls": i % 4},
        )
        for i in range(count)
    ]
