"""Perceptual hashes of pictures. The one door to pdqhash."""

from importlib.metadata import version
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vlp.errors import needs

BITS = 256
RADIUS = 31
"""Bits in which the hashes of two pictures may differ that are taken for the same: PDQ's usual
cut-off."""
QUALITY = 50
"""Of a hash, 0 to 100: how much of a gradient there is to describe. Hashes below are like those of
any other flat picture, so they say nothing (PDQ's own advice)."""


class Pdq(NamedTuple):
    """What PDQ (Facebook 2019) says of a picture."""

    hash: UInt8[np.ndarray, "32"]
    """256 bits."""
    quality: int
    """0 to 100."""


def pdq_identity() -> str:
    """Return what changes when what makes the hashes changes."""
    with needs("filters", "Perceptual hashes take pdqhash"):
        return f"pdqhash {version('pdqhash')}"


def pdq(picture: Image.Image) -> Pdq:
    """Return the perceptual hash of a picture and its quality."""
    with needs("filters", "Perceptual hashes take pdqhash"):
        import pdqhash
    bits, quality = pdqhash.compute(np.asarray(picture))
    return Pdq(np.packbits(bits), int(quality))
