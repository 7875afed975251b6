"""Encoded bytes to pixels, in one way for training, evaluation, search and people's own files."""

import io
import warnings

from PIL import Image, ImageOps

from vlp.errors import UserError

MAX_PIXELS = 100_000_000
"""Larger pictures are refused from the header: a small file can unpack to gigabytes."""


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is read: some of Pillow's other formats run programs on bytes that came from the web."""
ORIENTATION = 0x0112
"""EXIF's tag of how a picture is turned; 1 is upright."""
BITS, PHOTOMETRIC = 0x0102, 0x0106
"""TIFF's tags of the bits of each channel, and of what a 0 means."""
ZERO_IS_WHITE = 0


HEAD = 1 << 16
"""Bytes at the beginning of a file that hold the header of nearly all pictures."""


class ImageError(Exception):
    """An image that cannot be read; the message says why, in few words."""


def decode(data: bytes, *, least_side: int | None = None) -> Image.Image:
    """Return the first frame as upright RGB.

    EXIF orientation is applied, transparency is laid on white, grey of 12 or 16 bits is scaled to
    8. Grey of 32 bits is refused: no header says which of its values is white.

    Args:
        data: An encoded picture.
        least_side: Pixels that both sides must keep: a larger JPEG is decoded at 1/2, 1/4 or 1/8
            of its size, in so much less time. None: as it is.

    Raises:
        ImageError: The bytes are no picture, end early, hold more than ``MAX_PIXELS``, or have
            channels of 32 bits.
    """
    if not data:
        raise ImageError("image is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            check_size(*image.size)
            if least_side:
                image.draft(None, (least_side, least_side))  # JPEG's alone
            image.load()
            return _rgb(ImageOps.exif_transpose(_eight_bit(image)))
    except Image.UnidentifiedImageError:
        raise ImageError("image format is not known") from None
    except Image.DecompressionBombError:
        raise ImageError("image has too many pixels") from None
    except ImageError:
        raise
    except Exception as error:  # a damaged header makes decoders raise anything, struct.error too
        raise ImageError(_reason(error)) from None


def open_image(path: str) -> Image.Image:
    """Return an image file as upright RGB.

    Raises:
        UserError: The file is missing or is no picture.
    """
    try:
        with open(path, "rb") as file:
            return decode(file.read())
    except OSError as error:
        raise UserError(f"Cannot open the image {path}: {error.strerror}.") from None
    except ImageError as error:
        raise UserError(
            f"Cannot read {path}: the {error}. Give a whole JPEG, PNG or WebP file of at most "
            f"{MAX_PIXELS:,} pixels."
        ) from None


def size(data: bytes) -> tuple[int, int]:
    """Return (width, height) from the header, without decoding the pixels.

    Raises:
        ImageError: The bytes are no picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width, height = Image.open(io.BytesIO(data), formats=FORMATS).size
    except Image.DecompressionBombError:
        raise ImageError("image has too many pixels") from None
    except Exception:  # a damaged header makes decoders raise anything
        raise ImageError("image format is not known" if data else "image is empty") from None
    check_size(width, height)
    return width, height


def shrink_image(data: bytes, short_side: int) -> bytes:
    """Return a picture with this shorter side as JPEG of quality 90; a smaller one as it is.

    Raises:
        ImageError: The picture cannot be read.
    """
    if min(size(data)) <= short_side:
        return data
    image = decode(data)
    factor = short_side / min(image.size)
    sides = (round(image.width * factor), round(image.height * factor))
    buffer = io.BytesIO()
    image.resize(sides, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def check_size(width: int, height: int) -> None:
    """Raise ImageError where a header says more than ``MAX_PIXELS``."""
    if width * height > MAX_PIXELS:
        raise ImageError("image has too many pixels")


def is_upright(data: bytes) -> bool:
    """Return whether the pixels of an encoded picture lie as they are to be seen (EXIF)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=FORMATS).getexif().get(ORIENTATION, 1) == 1
    except Exception:  # a damaged header makes decoders raise anything
        return False


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return an image whose channels have 8 bits; what else it holds goes with it."""
    is_16_bit_pgm = image.format == "PPM" and image.mode == "I"
    if image.mode in ("I", "F") and not is_16_bit_pgm:
        raise ImageError("image has channels of 32 bits")
    if not image.mode.startswith("I"):
        return image
    tags = getattr(image, "tag_v2", {})
    scale = 256 / 2 ** tags.get(BITS, (16,))[0]
    grey = image.convert("I").point(lambda value: value * scale).convert("L")
    # Pillow heeds this for 1 and 8 bits itself.
    return ImageOps.invert(grey) if tags.get(PHOTOMETRIC) == ZERO_IS_WHITE else grey


def _rgb(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    """Return one of few reasons, so that a report can count them."""
    text = str(error).lower()
    return "image ends early" if "truncated" in text or "end" in text else "image is damaged"
