"""Pictures and captions to features, batch by batch."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vlp.batches import batches
from vlp.encoder import DualEncoder


def to_best_device(encoder: DualEncoder) -> DualEncoder:
    """Move the encoder to the GPU where there is one."""
    return encoder.to("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def encode_images(
    encoder: DualEncoder, pictures: Iterable[Image.Image], *, batch_size: int = 256
) -> Float[Tensor, "pictures dim"]:
    """Return the features of upright RGB pictures: fp32 on the CPU, unit-length rows."""
    device = encoder.logit_scale.device
    parts = [torch.empty(0, encoder.dim)]
    for group in batches(pictures, batch_size):
        pixels = torch.stack([encoder.transform(picture) for picture in group])
        parts.append(_features(encoder(images=pixels.to(device)).image))
    return torch.cat(parts)


@torch.no_grad()
def encode_texts(
    encoder: DualEncoder, captions: Sequence[str], *, batch_size: int = 256
) -> Float[Tensor, "captions dim"]:
    """Return the features of captions, in their order: fp32 on the CPU, unit-length rows."""
    device = encoder.logit_scale.device
    parts = [torch.empty(0, encoder.dim)]
    for group in batches(captions, batch_size):
        tokens = encoder.tokenizer(group)
        tokens = tokens[:, : encoder.caption_length(tokens)]
        parts.append(_features(encoder(tokens=tokens.to(device)).text))
    return torch.cat(parts)


def _features(features: Tensor | None) -> Tensor:
    assert features is not None
    return features.float().cpu()
