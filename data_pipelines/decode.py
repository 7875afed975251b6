"""Pictures for training: decoded fast, cropped, resized and changed as generators draw it."""

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
SCAN, METADATA = 0xDA, 0xE1
"""Markers of a JPEG: its pixels follow; EXIF or XMP follows, which may say that it is turned."""


def training_views(
    data: bytes,
    size: tuple[int, int],
    options: Augmentation,
    rngs: Sequence[np.random.Generator],
    *,
    is_scaled: bool = False,
    tick: Callable[[str], object] = str,
) -> list[UInt8[Tensor, "3 height width"]]:
    """Return a view of a picture for each generator.

    Args:
        data: The encoded picture.
        size: Height and width of a view.
        options: What is changed at random.
        rngs: What is random about each view.
        is_scaled: Decode a large JPEG at 1/2, 1/4 or 1/8 of its size, in the DCT, where every crop
            keeps 95 % of its view's pixels along each side. Crops then lie on the coarser grid.
        tick: Told of a stage, ``decode`` or ``transform``, when it ends.

    Raises:
        ImageError: The picture cannot be read, or has too many pixels.
    """
    sides = _jpeg_size(data) if is_scaled else None
    if sides:
        boxes = [crop_box(*sides, options, rng) for rng in rngs]
        shrink = _largest_shrink(boxes, size)
        pixels = decode_pixels(data, shrink)
        if pixels.shape[1] == sides[0]:  # a damaged one may be Pillow's, in full
            shrink = 1
        boxes = [tuple(side // shrink for side in box) for box in boxes]
    else:
        pixels = decode_pixels(data)
        height, width = pixels.shape[:2]
        boxes = [crop_box(width, height, options, rng) for rng in rngs]
    tick("decode")
    views = [_resized(pixels, box, size) for box in boxes]
    if options.changes:
        views = [_changed(view, options, rng) for view, rng in zip(views, rngs, strict=True)]
    tick("transform")
    return views


def decode_pixels(data: bytes, shrink: int = 1) -> UInt8[np.ndarray, "height width 3"]:
    """Return the pixels of a picture as ``vlp.image.decode`` does, JPEG within 2 of 255 levels.

    Args:
        data: The encoded picture.
        shrink: Decode a JPEG that lies upright at 1/2, 1/4 or 1/8 of its size, sides rounded up.

    Raises:
        ImageError: The picture cannot be read, or has too many pixels.
    """
    sides = _jpeg_size(data)
    if sides:
        check_size(*sides)
        width, height = (-(-side // shrink) if shrink > 1 else 0 for side in sides)
        try:
            return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
        except ValueError:
            pass  # Pillow judges what is damaged, so that every command names it alike
    return np.array(decode(data))


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


def _largest_shrink(boxes: Sequence[tuple[int, ...]], size: tuple[int, int]) -> int:
    """Return the largest of 8, 4, 2, 1 that leaves every crop about as many pixels as its view."""
    times_wide = min(right - left for left, _, right, _ in boxes) / size[1]
    times_high = min(bottom - top for _, top, _, bottom in boxes) / size[0]
    most = min(times_wide, times_high) / ENOUGH
    return next(n for n in (8, 4, 2, 1) if n == 1 or n <= most)


def _resized(
    pixels: UInt8[np.ndarray, "height width 3"],
    box: tuple[int, ...],
    size: tuple[int, int],
) -> UInt8[Tensor, "3 out_height out_width"]:
    left, top, right, bottom = box
    # torch's kernel for bytes works on channels last, without a copy into and out of its own layout
    # only where every stride says so, that of the batch of one too: hence None before the permute.
    crop = torch.from_numpy(np.ascontiguousarray(pixels[top:bottom, left:right]))[None]
    view = interpolate(crop.permute(0, 3, 1, 2), size=size, mode="bicubic", antialias=True)
    return view[0]


def _changed(
    view: UInt8[Tensor, "3 height width"], options: Augmentation, rng: np.random.Generator
) -> UInt8[Tensor, "3 height width"]:
    image = Image.fromarray(view.permute(1, 2, 0).contiguous().numpy())
    return torch.from_numpy(np.array(change(image, options, rng))).permute(2, 0, 1)
