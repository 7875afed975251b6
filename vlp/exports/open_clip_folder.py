"""The folder that a checkpoint is, loaded by open_clip alone and compared."""

from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F

from vlp.checkpoint import save_encoder
from vlp.encoder import DualEncoder
from vlp.exports.parity import difference, normalised, probe


@torch.no_grad()
def write_open_clip(encoder: DualEncoder, folder: Path) -> float:
    """Write a folder that open_clip loads as ``local-dir:``; return how far its features differ."""
    save_encoder(encoder, folder)
    probed = probe(encoder)
    model: Any = open_clip.create_model(f"local-dir:{folder}").eval()
    image = F.normalize(model.encode_image(normalised(encoder, probed.pixels)), dim=-1)
    text = F.normalize(model.encode_text(probed.tokens), dim=-1)
    return difference(probed, image, text)
