"""Pictures of every kind come out as upright RGB."""

import contextlib
import io
import struct

import numpy as np
import pytest
from PIL import Image

from vlp.errors import UserError
from vlp.image import ImageError, decode, open_image, size


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_orientation_is_applied():
    image = Image.new("RGB", (20, 10), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert decode(encoded(image, "JPEG", exif=exif)).size == (10, 20)


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert decode(encoded(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(half, "PNG")).getpixel((0, 0)) == (127, 127, 127)
    palette = clear.convert("P")
    palette.info["transparency"] = 0
    assert decode(encoded(palette, "PNG")).mode == "RGB"


def test_sixteen_bit_grey_keeps_its_brightness():
    grey = Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16))
    assert decode(encoded(grey, "PNG")).getpixel((0, 0)) == (128, 128, 128)


def test_sixteen_bit_grey_is_turned_as_its_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = Image.fromarray(np.full((10, 20), 32768, dtype=np.uint16))
    found = decode(encoded(grey, "PNG", exif=exif))
    assert (found.size, found.getpixel((0, 0))) == ((10, 20), (128, 128, 128))


def tiff(bits: int, photometric: int, data: bytes) -> bytes:
    """Return a grey TIFF of 2 x 1 pixels, by its specification (TIFF 6.0, section 4)."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 122, 277: 1, 278: 1}
    tags[279] = len(data)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


@pytest.mark.parametrize(
    ("bits", "data", "is_inverted"),
    [
        (8, b"\x40\xff", False),
        (8, b"\x40\xff", True),
        (12, b"\x40\x0f\xff", False),
        (16, b"\x00\x40\xff\xff", False),
        (16, b"\x00\x40\xff\xff", True),
    ],
)
def test_grey_of_a_tiff_is_as_bright_as_its_header_says(bits, data, is_inverted):
    found = decode(tiff(bits, 0 if is_inverted else 1, data))
    brightness = [0x40, 0xFF]
    if is_inverted:
        brightness = [255 - value for value in brightness]
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(value,) * 3 for value in brightness]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_channels_of_32_bits_are_a_fault(kind):
    data = encoded(Image.fromarray(np.full((4, 4), 100, dtype=kind)), "TIFF")
    with pytest.raises(ImageError, match="image has channels of 32 bits"):
        decode(data)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_of_a_tiff_becomes_rgb_of_about_the_same_colour(mode):
    white, middle = (Image.new("L", (4, 4), value) for value in (255, 128))
    image = white.convert("P" if mode == "PA" else "RGB")
    image = Image.merge("LAB", [white, middle, middle]) if mode == "LAB" else image.convert(mode)
    found = decode(encoded(image, "TIFF"))
    assert min(found.getpixel((0, 0))) >= 253


def test_a_portable_graymap_of_16_bits_keeps_its_brightness():
    grey = Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16))
    assert decode(encoded(grey, "PPM")).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LA"])
def test_every_mode_becomes_rgb(mode):
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    assert decode(encoded(Image.new(mode, (3, 3)), kind)).mode == "RGB"


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "image is empty"),
        (b"<svg></svg>", "format is not known"),
        (encoded(Image.effect_noise((64, 64), 90), "JPEG")[:900], "ends early"),
        (encoded(Image.effect_noise((64, 64), 90), "PNG")[:900], "ends early"),
    ],
)
def test_what_cannot_be_read_has_a_reason(data, reason):
    with pytest.raises(ImageError, match=reason):
        decode(data)


def test_damage_anywhere_in_a_file_never_raises_anything_else():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    whole = encoded(Image.effect_noise((32, 32), 90), "JPEG", exif=exif)
    rng = np.random.default_rng(0)
    for _ in range(3000):
        damaged = bytearray(whole)
        for place in rng.integers(0, 200, 3):
            damaged[place] = rng.integers(256)
        with contextlib.suppress(ImageError):
            decode(bytes(damaged))


def test_a_decompression_bomb_is_refused_from_its_header():
    data = encoded(Image.new("1", (20000, 20000)), "PNG")
    assert len(data) < 100_000
    with pytest.raises(ImageError, match="too many pixels"):
        decode(data)


def test_the_size_comes_from_the_header_alone():
    whole = encoded(Image.effect_noise((64, 48), 90), "JPEG")
    assert size(whole[:700]) == (64, 48)
    with pytest.raises(ImageError):
        size(b"no picture")


def test_a_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "x.jpg").write_text("hello")
    with pytest.raises(UserError, match=r"x.jpg: the image format is not known"):
        open_image(str(tmp_path / "x.jpg"))
    with pytest.raises(UserError, match="Cannot open the image"):
        open_image(str(tmp_path / "missing.jpg"))


def test_a_format_for_which_pillow_would_start_another_program_is_not_known():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    for read in (decode, size):
        with pytest.raises(ImageError, match="format is not known"):
            read(postscript)
