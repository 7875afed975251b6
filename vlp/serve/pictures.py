"""Pictures that come in, and pictures of the index that go out: never a path, never a URL."""

import base64
import binascii
import io
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from PIL import Image

from vlp.image import ImageError, decode, size
from vlp.serve.limits import Refused

SIDES = {"thumbnail": 320, "large": 1600}
"""By its name, the longest side of a picture that is sent, in pixels."""
KEPT_BYTES = 64 << 20
"""Of encoded thumbnails in memory."""


def uploaded(data: str, most_pixels: int) -> Image.Image:
    """Return a picture that was sent as base64, with or without the ``data:`` of a data URL.

    Raises:
        Refused: It is no base64, no picture, or has too many pixels.
    """
    if data.startswith("data:"):
        _, is_base64, data = data.partition(";base64,")
        if not is_base64:
            raise Refused(422, "A data URL must hold base64.")
    try:
        encoded = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(
            422, "The image is no base64. Send the bytes of a picture file, never a path or a URL."
        ) from None
    try:
        width, height = size(encoded)
        if width * height > most_pixels:
            raise ImageError(f"image has {width} x {height} pixels, above {most_pixels:,}")
        return decode(encoded)
    except ImageError as error:
        raise Refused(422, f"The image cannot be read: the {error}.") from None


class Thumbnails:
    """Pictures of the index made small; the last ones stay in memory.

    Args:
        read: The encoded picture of a number.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._kept: OrderedDict[tuple[int, str], bytes] = OrderedDict()
        self._bytes, self._lock = 0, Lock()

    def __call__(self, number: int, name: str) -> bytes:
        """Return a picture as JPEG, no larger than its name says.

        What is sent is always encoded anew: what else the file holds, such as where a photograph
        was taken, stays here.
        """
        with self._lock:
            if (number, name) in self._kept:
                self._kept.move_to_end((number, name))
                return self._kept[number, name]
        made = shrunk(self._read(number), SIDES[name])
        with self._lock:
            if (number, name) not in self._kept:
                self._kept[number, name] = made
                self._bytes += len(made)
            while self._bytes > KEPT_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return made


def shrunk(encoded: bytes, longest_side: int) -> bytes:
    """Return a picture as JPEG, its longest side cut down to so many pixels.

    Raises:
        ImageError: The picture cannot be read.
    """
    image = decode(encoded, least_side=longest_side)
    image.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    # Colours at full resolution: at half of it, flat drawings get coloured fringes.
    image.save(buffer, "JPEG", quality=85, subsampling=0)
    return buffer.getvalue()
