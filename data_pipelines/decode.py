"""Pictures for training: decoded fast, cropped, resized and changed as generators draw it."""

import math
import threading
from collections.abc import Callable, Sequence

import numpy as np
import simplejpeg
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from data_pipelines.augment import Augmentation, change, crop_box
from vlp.image import check_size, decode, is_upright

JPEG = b"\xff\xd8\xff"
ENOUGH = 0.95
"""Pixels along a side of a crop for each pixel of its view, where decoding is scaled."""
BUFFER = 2**24
"""Bytes of memory for the pixels of a JPEG, used again and again: 5.6 million pixels."""
ROUNDING = 1e-9
"""Added to a scale, so that its product with a side is never just below the whole number."""
SCAN, METADATA = 0xDA, 0xE1
"""Markers of a JPEG: its pixels follow; EXIF or XMP follows, which may say that it is turned."""

_threads = threading.local()


def training_views(
    data: bytes,
    sizes: Sequence[tuple[int, int]],
    options: Augmentation,
    rngs: Sequence[np.random.Generator],
    *,
    is_scaled: bool = False,
    tick: Callable[[str], object] = lambda stage: None,
) -> list[UInt8[Tensor, "3 height width"]]:
    """Return views of a picture; equal generators give one view, whatever its sizes.

    Args:
        data: The encoded picture.
        sizes: Height and width of each view.
        options: What is changed at random.
        rngs: What is random about each view.
        is_scaled: Decode a large JPEG at 1/2, 1/4 or 1/8 of its size, in the DCT, where every crop
            keeps 95 % of its view's pixels along each side. Crops then begin at every 2nd, 4th or
            8th pixel; their sides stay what they are, in fractions of the coarser pixels.
        tick: Told of a stage, ``decode`` or ``transform``, when it ends.

    Raises:
        ImageError: The picture cannot be read, or has too many pixels.
    """
    sides = _jpeg_size(data) if is_scaled else None
    if sides:
        boxes = [crop_box(*sides, options, rng) for rng in rngs]
        shrink = min(map(largest_shrink, boxes, sizes))
        pixels = decode_pixels(data, shrink, _buffer())
        if pixels.shape[1] == sides[0]:  # a damaged one may be Pillow's, in full
            shrink = 1
    else:
        pixels, shrink = decode_pixels(data, buffer=_buffer()), 1
        height, width, _ = pixels.shape
        boxes = [crop_box(width, height, options, rng) for rng in rngs]
    tick("decode")
    views = [_resized(pixels, box, size, shrink) for box, size in zip(boxes, sizes, strict=True)]
    if options.changes:
        views = [_changed(view, options, rng) for view, rng in zip(views, rngs, strict=True)]
    tick("transform")
    return views


def decode_pixels(
    data: bytes, shrink: int = 1, buffer: UInt8[np.ndarray, "bytes"] | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the pixels of a picture as ``vlp.image.decode`` does, JPEG within 2 of 255 levels.

    Args:
        data: The encoded picture.
        shrink: Decode a JPEG that lies upright at 1/2, 1/4 or 1/8 of its size, sides rounded up.
        buffer: Memory for the pixels, where it is large enough.

    Raises:
        ImageError: The picture cannot be read, or has too many pixels.
    """
    sides = _jpeg_size(data)
    if sides:
        check_size(*sides)
        if buffer is not None and 3 * math.prod(sides) > len(buffer):
            buffer = None
        width, height = (-(-side // shrink) if shrink > 1 else 0 for side in sides)
        try:
            return simplejpeg.decode_jpeg(
                data, "RGB", min_height=height, min_width=width, buffer=buffer
            )
        except ValueError:
            pass  # Pillow judges what is damaged, so that every command names it alike
    return np.array(decode(data))


def _buffer() -> UInt8[np.ndarray, "bytes"]:
    """Return memory for a picture, each time the same in a thread.

    Where every picture is given new memory, its pages fault, which takes a quarter as long as to
    decode it.
    """
    if not hasattr(_threads, "buffer"):
        _threads.buffer = np.empty(BUFFER, np.uint8)
    return _threads.buffer


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a JPEG that the fast decoder takes as it stands, else None."""
    if not data.startswith(JPEG):
        return None
    if _has_metadata(data) and not is_upright(data):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (int(width), int(height)) if space in ("YCbCr", "Gray") else None


def _has_metadata(data: bytes) -> bool:
    """Return whether a JPEG may say how it is turned; true of one that is damaged."""
    at = len(JPEG) - 1
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != METADATA:
        if data[at + 1] == SCAN:
            return False
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return True


def largest_shrink(box: tuple[int, ...], size: tuple[int, int]) -> int:
    """Return the largest of 8, 4, 2, 1 that leaves a crop about as many pixels as its view."""
    left, top, right, bottom = box
    most = min((right - left) / size[1], (bottom - top) / size[0]) / ENOUGH
    return next(n for n in (8, 4, 2, 1) if n == 1 or n <= most)


def _resized(
    pixels: UInt8[np.ndarray, "height width 3"],
    box: tuple[int, ...],
    size: tuple[int, int],
    shrink: int,
) -> UInt8[Tensor, "3 out_height out_width"]:
    """Return a crop, as a box in the whole picture's pixels, of pixels decoded ``shrink`` small."""
    left, top, right, bottom = box
    width, height = (right - left) / shrink, (bottom - top) / shrink
    left, top = left // shrink, top // shrink
    crop = pixels[top : top + math.ceil(height), left : left + math.ceil(width)]
    # torch's kernel for bytes works on channels last, without a copy into and out of its own layout
    # only where every stride says so, that of the batch of one too: hence None before the permute.
    batch = torch.from_numpy(np.ascontiguousarray(crop))[None].permute(0, 3, 1, 2)
    if shrink == 1:
        # Pillow's order since 13: both clip between the passes, so another order is another view.
        if 0 < height - size[0] > 2 * (width - size[1]):
            rows = (size[0], batch.shape[3])
            batch = interpolate(batch, size=rows, mode="bicubic", antialias=True)
        return interpolate(batch, size=size, mode="bicubic", antialias=True)[0]
    # Sides in fractions of a pixel: rounded to whole ones, the view would lose 10 dB.
    scale = size[0] / height * (1 + ROUNDING), size[1] / width * (1 + ROUNDING)
    view = interpolate(batch, scale_factor=scale, mode="bicubic", antialias=True)
    return view[0, :, : size[0], : size[1]]


def _changed(
    view: UInt8[Tensor, "3 height width"], options: Augmentation, rng: np.random.Generator
) -> UInt8[Tensor, "3 height width"]:
    image = Image.fromarray(view.permute(1, 2, 0).contiguous().numpy())
    return torch.from_numpy(np.array(change(image, options, rng))).permute(2, 0, 1)
