"""Pictures and pairs that tests draw, and what they see of a page."""

import io
from html.parser import HTMLParser

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


class Seen(HTMLParser):
    """The tags and the text of a document; every tag is closed in the order it was opened."""

    def __init__(self, document):
        super().__init__()
        self.tags, self.text, self.open, self.sources = [], [], [], []
        self.feed(document)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
