"""Pictures for training: as exact as Pillow, as fast as libjpeg-turbo, and never a crash."""

import contextlib
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resized_crop

from data_pipelines import decode as decode_module
from data_pipelines.augment import Augmentation, crop_box
from data_pipelines.decode import decode_pixels, training_views
from vlp.image import ImageError, decode

OPTIONS = Augmentation(scale=(0.2, 0.9))


def smooth(width, height, mode="RGB") -> Image.Image:
    """Return a picture of soft waves of colour."""
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    waves = [np.sin(x + y * n) + np.cos(y - x / (n + 1)) for n in range(3)]
    return Image.fromarray((np.stack(waves, 2) * 60 + 128).astype(np.uint8)).convert(mode)


def noisy(width, height, mode="RGB") -> Image.Image:
    """Return a smooth picture with some grain, as photographs have."""
    pixels = np.array(smooth(width, height), np.int16)
    pixels += np.random.default_rng(0).integers(-12, 13, pixels.shape, np.int16)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image, kind="JPEG", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def view(data, size, seed=0, **options):
    return training_views(data, [size], OPTIONS, [np.random.default_rng(seed)], **options)[0]


def expected(data, size, seed=0, shrink=1):
    """Return Pillow's and torchvision's crop, its corner on a grid of ``shrink`` pixels."""
    image = decode(data)
    left, top, right, bottom = crop_box(*image.size, OPTIONS, np.random.default_rng(seed))
    height, width = bottom - top, right - left
    left, top = left // shrink * shrink, top // shrink * shrink
    crop = resized_crop(image, top, left, height, width, list(size), InterpolationMode.BICUBIC)
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1)


def psnr(one, other) -> float:
    error = (one.float() - other.float()).square().mean()
    return float(10 * torch.log10(255**2 / error))


KINDS = {
    "4:2:0": {"quality": 90},
    "4:4:4": {"quality": 95, "subsampling": 0},
    "4:2:2": {"quality": 80, "subsampling": 1},
    "progressive": {"quality": 90, "progressive": True},
}


@pytest.mark.parametrize("kind", [*KINDS, "grey"])
@pytest.mark.parametrize("size", [(640, 480), (333, 517), (64, 64), (1, 1), (17, 900)], ids=str)
def test_a_jpeg_is_within_two_levels_of_pillow_and_torchvision(kind, size):
    image = noisy(*size, mode="L" if kind == "grey" else "RGB")
    data = encoded(image, **KINDS.get(kind, {}))
    for seed, out in enumerate([(224, 224), (64, 96), (32, 32)]):
        found, wanted = view(data, out, seed), expected(data, out, seed)
        assert (found.dtype, found.shape) == (torch.uint8, (3, *out))
        assert (found.int() - wanted.int()).abs().max() <= 2


@pytest.mark.parametrize(
    "size", [(231, 305), (90, 400), (300, 90), (260, 700), (500, 260)], ids=str
)
def test_hard_edges_overshoot_as_in_pillow_however_a_crop_is_shaped(size):
    edges = np.random.default_rng(0).integers(0, 2, (size[1], size[0], 3)).astype(np.uint8) * 255
    data = encoded(Image.fromarray(edges), "PNG")
    for seed in range(8):
        found, wanted = view(data, (224, 224), seed), expected(data, (224, 224), seed)
        assert (found.int() - wanted.int()).abs().max() <= 2


def turned(orientation) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(noisy(40, 24), quality=95, exif=exif)


def turned_by_xmp(orientation) -> bytes:
    told = f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode()
    segment = b"http://ns.adobe.com/xap/1.0/\0" + told
    whole = encoded(noisy(40, 24), quality=95)
    return whole[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + whole[2:]


def late_exif() -> bytes:
    """Return a turned JPEG whose EXIF stands behind 130,000 bytes of other metadata."""
    whole = turned(6)
    filler = b"\xff\xed" + (65_000).to_bytes(2, "big") + bytes(64_998)
    return whole[:2] + filler * 2 + whole[2:]


def sixteen_bit() -> bytes:
    return encoded(Image.fromarray(np.arange(24 * 40, dtype=np.uint16).reshape(24, 40) * 60), "PNG")


def animated(kind) -> bytes:
    frames = [smooth(40, 24), Image.new("RGB", (40, 24), "blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


OTHERS = {
    **{f"EXIF {n}": turned(n) for n in range(1, 9)},
    "XMP 6": turned_by_xmp(6),
    "XMP 1": turned_by_xmp(1),
    "late EXIF": late_exif(),
    "CMYK": encoded(noisy(40, 24, "CMYK")),
    "RGB inside": encoded(noisy(40, 24), quality=95, keep_rgb=True),
    "16-bit PNG": sixteen_bit(),
    "palette": encoded(noisy(40, 24, "P"), "PNG"),
    "clear palette": encoded(noisy(40, 24, "P"), "PNG", transparency=3),
    "alpha": encoded(Image.merge("RGBA", (*noisy(40, 24).split(), smooth(40, 24, "L"))), "PNG"),
    "grey and alpha": encoded(noisy(40, 24, "LA"), "PNG"),
    "one bit": encoded(noisy(40, 24, "1"), "PNG"),
    "WebP": encoded(noisy(40, 24), "WEBP"),
    "animated GIF": animated("GIF"),
    "animated WebP": animated("WEBP"),
    "animated PNG": animated("PNG"),
    "TIFF": encoded(noisy(40, 24), "TIFF"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_kind_of_picture_has_the_pixels_that_all_commands_see(name):
    found, wanted = decode_pixels(OTHERS[name]), np.array(decode(OTHERS[name]))
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= (2 if "1" in name else 0)
    for is_scaled in (False, True):
        assert torch.equal(
            view(OTHERS[name], (16, 16), is_scaled=is_scaled),
            view(OTHERS[name], (16, 16), is_scaled=False),
        )


def shrinks(monkeypatch) -> list[int]:
    """Return a list that the shrink of each decode to come is added to."""
    found, real = [], decode_module.decode_pixels

    def noted(data, shrink=1, buffer=None):
        found.append(shrink)
        return real(data, shrink, buffer)

    monkeypatch.setattr(decode_module, "decode_pixels", noted)
    return found


@pytest.mark.parametrize("size", [(640, 480), (1023, 769)], ids=str)
@pytest.mark.parametrize("out", [16, 32, 64, 100])
def test_scaled_decoding_takes_the_smallest_picture_that_has_the_pixels(size, out, monkeypatch):
    data, found = encoded(smooth(*size), quality=95), shrinks(monkeypatch)
    for seed in range(4):
        scaled = view(data, (out, out), seed, is_scaled=True)
        left, top, right, bottom = crop_box(*size, OPTIONS, np.random.default_rng(seed))
        least = min(right - left, bottom - top)
        shrink = found.pop()
        assert least >= out * shrink or shrink == 1
        assert least < out * shrink * 2 or shrink == 8
        assert psnr(scaled, expected(data, (out, out), seed, shrink)) >= 30


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(640, 480), (641, 483), (31, 9), (8, 8), (1, 1)], ids=str)
def test_a_picture_decoded_small_has_its_sides_rounded_up(size, shrink):
    found = decode_pixels(encoded(smooth(*size)), shrink)
    if min(size) >= 8:
        assert found.shape == (-(-size[1] // shrink), -(-size[0] // shrink), 3)
    assert min(found.shape) >= 1


def test_a_crop_that_is_too_small_is_never_decoded_small(monkeypatch):
    found = shrinks(monkeypatch)
    for side in (10, 63, 64, 100):
        view(encoded(smooth(side, side)), (64, 64), is_scaled=True)
    assert set(found) == {1}


def test_more_views_leave_the_first_as_it_is():
    data = encoded(noisy(300, 200))
    options = Augmentation(scale=(0.2, 1.0), flip=0.5, hue=0.2, rotate=10)
    rngs = [np.random.default_rng(i) for i in range(5)]
    many = training_views(data, [(32, 32)] * 5, options, rngs)
    one = training_views(data, [(32, 32)], options, [np.random.default_rng(0)])
    assert torch.equal(one[0], many[0])
    assert not any(torch.equal(one[0], other) for other in many[1:])


@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "exif"])
def test_a_damaged_jpeg_is_a_picture_or_an_error_and_never_a_crash(kind, is_scaled):
    whole = turned(1) if kind == "exif" else encoded(noisy(48, 48), **KINDS[kind])
    rng = np.random.default_rng(0)
    for number in range(150):
        damaged = bytearray(whole[: rng.integers(3, len(whole))] if number % 3 == 0 else whole)
        for place in rng.integers(0, len(damaged), 3):
            damaged[place] = rng.integers(256)
        with contextlib.suppress(ImageError):
            assert view(bytes(damaged), (8, 8), is_scaled=is_scaled).shape == (3, 8, 8)


def test_a_jpeg_that_ends_early_is_an_error_whichever_way_it_is_decoded():
    whole = encoded(noisy(200, 200))
    for is_scaled in (False, True):
        with pytest.raises(ImageError, match="image ends early"):
            view(whole[: len(whole) // 2], (16, 16), is_scaled=is_scaled)


def test_what_the_fast_decoder_takes_never_depends_on_a_name():
    assert torch.equal(view(encoded(smooth(60, 40), "PNG"), (8, 8)), view(
        encoded(smooth(60, 40), "WEBP", lossless=True), (8, 8)
    ))  # fmt: skip
