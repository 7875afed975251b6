"""Pictures of every kind come out as upright RGB."""

import contextlib
import io

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
