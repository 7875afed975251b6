"""Pictures and captions to features, batch by batch."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from vlp.batches import batches
from vlp.encoder import DualEncoder
from vlp.processes import ALONE, Processes

SORTED = 64
"""Batches of captions that are sorted by length at a time."""


def to_best_device(encoder: DualEncoder) -> DualEncoder:
    """Move the encoder to the GPU where there is one."""
    return encoder.to("cuda" if torch.cuda.is_available() else "cpu")


class Rows(NamedTuple):
    """What a tower gives for pictures or captions, on the CPU."""

    features: Float[Tensor, "rows dim"]
    """Unit-length rows in fp32."""
    pooled: Float[Tensor, "rows width"] | None = None
    """Before the projection, where asked for; of any length."""

    def take(self, places: Sequence[int]) -> "Rows":
        """Return the rows at these places."""
        rows = list(places)
        return Rows(self.features[rows], None if self.pooled is None else self.pooled[rows])


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several batches as one."""
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Rows(torch.cat([part.features for part in parts]), torch.cat(pooled) if pooled else None)


def encode_images(
    encoder: DualEncoder, pictures: Iterable[Image.Image], *, batch_size: int = 256
) -> Float[Tensor, "pictures dim"]:
    """Return the features of upright RGB pictures: fp32 on the CPU, unit-length rows."""
    parts = [torch.empty(0, encoder.dim)]
    for group in batches(pictures, batch_size):
        pixels = torch.stack([encoder.transform(picture) for picture in group])
        parts.append(encode_pixels(encoder, pixels).features)
    return torch.cat(parts)


@torch.no_grad()
def encode_pixels(
    encoder: DualEncoder, pixels: UInt8[Tensor, "pictures 3 height width"], *, pooled: bool = False
) -> Rows:
    """Return what the image tower gives for a batch of pictures."""
    found = encoder(images=pixels.to(encoder.logit_scale.device), pooled=pooled)
    return _rows(found.image, found.image_pooled)


def encode_texts(
    encoder: DualEncoder,
    captions: Sequence[str],
    *,
    batch_size: int | None = None,
    processes: Processes = ALONE,
) -> Float[Tensor, "captions dim"]:
    """Return the features of captions, in their order: fp32 on the CPU, unit-length rows.

    Each different caption is encoded once, with others of about its length: a batch costs what its
    longest caption does. Without a batch size it is 64 on a CPU, whose caches hold no more (0.84
    times the time of 256, measured), else 256. Of several processes, which all call this with the
    same captions, each encodes every n-th batch.
    """
    batch_size = batch_size or (64 if encoder.logit_scale.device.type == "cpu" else 256)
    known: dict[str, Tensor] = {}
    for group in batches(dict.fromkeys(captions), SORTED * batch_size):
        tokens = encoder.tokenizer(group)
        order = encoder.caption_lengths(tokens).argsort(stable=True)
        turns = [tokens[places] for places in order.split(batch_size)]
        parts = processes.share(turns, partial(_encode_tokens, encoder), idle=tokens[:1])
        features = torch.cat([part.features for part in parts])
        known.update(zip((group[place] for place in order.tolist()), features, strict=True))
    rows = [known[caption] for caption in captions]
    return torch.stack(rows) if rows else torch.empty(0, encoder.dim)


def encode_captions(encoder: DualEncoder, captions: Sequence[str], *, pooled: bool = False) -> Rows:
    """Return what the text tower gives for a batch of captions."""
    return _encode_tokens(encoder, encoder.tokenizer(captions), pooled=pooled)


@torch.no_grad()
def _encode_tokens(
    encoder: DualEncoder, tokens: Int[Tensor, "captions length"], *, pooled: bool = False
) -> Rows:
    tokens = tokens[:, : encoder.caption_length(tokens)]
    found = encoder(tokens=tokens.to(encoder.logit_scale.device), pooled=pooled)
    return _rows(found.text, found.text_pooled)


def _rows(features: Tensor | None, pooled: Tensor | None) -> Rows:
    assert features is not None
    return Rows(features.float().cpu(), None if pooled is None else pooled.float().cpu())
