"""Whether an exported model gives the features of the encoder that it was made of."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from vlp.encoder import DualEncoder
from vlp.errors import UserError

BOUND = 1e-4
"""Largest difference of a number of a unit-length row that passes; rounding is below 1e-5."""
CAPTIONS = (
    "a photo of a dog",
    "",
    "Two red circles above a blue square, on grass!",
    "x",
    "un café à Paris; 東京の寺院 🙂",
    "a very long caption about many things " * 20,
)
"""Empty, of one token, with signs, of other scripts, and cut at the end."""
SIZES = ((64, 64), (97, 41), (40, 130), (224, 224), (300, 200), (31, 33))
"""Width and height in pixels."""


class Probe(NamedTuple):
    """Pictures and captions that both models are asked about."""

    pictures: list[Image.Image]
    captions: list[str]
    pixels: UInt8[Tensor, "probes 3 height width"]
    tokens: Int[Tensor, "probes length"]
    image: Float[Tensor, "probes dim"]
    """The encoder's own features, as ``text``: unit-length rows."""
    text: Float[Tensor, "probes dim"]


@torch.no_grad()
def probe(encoder: DualEncoder) -> Probe:
    """Return what an exported model is compared on: drawn pictures, and captions of any length."""
    draws = np.random.default_rng(0)
    pictures = []
    for width, height in SIZES:
        coarse = draws.integers(0, 256, (4, 4, 3), np.uint8)
        pictures.append(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    pixels = torch.stack([encoder.transform(picture) for picture in pictures])
    tokens = encoder.tokenizer(list(CAPTIONS))
    device = encoder.logit_scale.device
    found = encoder(images=pixels.to(device), tokens=tokens.to(device))
    assert found.image is not None
    assert found.text is not None
    image, text = found.image.float().cpu(), found.text.float().cpu()
    return Probe(pictures, list(CAPTIONS), pixels, tokens, image, text)


def normalised(
    encoder: DualEncoder, pixels: UInt8[Tensor, "probes 3 height width"]
) -> Float[Tensor, "probes 3 height width"]:
    """Return pixels as other programs give them to a tower: less the mean, by the deviation."""
    return (pixels - encoder.pixel_mean.float().cpu()) / encoder.pixel_std.float().cpu()


def difference(probed: Probe, image: Tensor, text: Tensor) -> float:
    """Return the largest difference between a model's features and the encoder's own.

    Raises:
        UserError: It is above ``BOUND``: the exported model is another one.
    """
    parts = {"image": (probed.image, image), "text": (probed.text, text)}
    for kind, (wanted, found) in parts.items():
        worst = (wanted - found.float().cpu()).abs().max().item()
        if not worst <= BOUND:
            raise UserError(
                f"The exported model's {kind} features differ from the encoder's by {worst:.1e}, "
                f"more than {BOUND:g}: this architecture cannot be exported so. Nothing is written."
            )
    return max((wanted - found.cpu()).abs().max().item() for wanted, found in parts.values())
