"""Patch dropout drawn from each picture's seed: the same patches however a batch is split."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vlp.errors import UserError


class PatchDropout(nn.Module):
    """Leave out a share of every picture's patches while training, as FLIP does.

    open_clip's and timm's own draw from the global generator, so that other patches are left out
    when a batch is split over processes or pieces.

    Source: FLIP (Li et al. 2022, arXiv:2212.00794, section 3.1).
    """

    def __init__(self, share: float, num_prefix: int) -> None:
        super().__init__()
        self.share, self.num_prefix = share, num_prefix
        self.seed: Tensor | None = None
        """Of the pictures that come next."""

    def forward(
        self, tokens: Float[Tensor, "pictures tokens width"]
    ) -> Float[Tensor, "pictures kept width"]:
        """Return the prefix tokens, such as the class token, and the kept patches in order."""
        if not self.training:
            return tokens
        assert self.seed is not None, "patches are drawn from seeds"
        prefix, patches = tokens[:, : self.num_prefix], tokens[:, self.num_prefix :]
        _, num_patches, width = patches.shape
        kept = kept_patches(self.seed, num_patches, share=1 - self.share)  # [pictures, kept]
        patches = patches.gather(1, kept[:, :, None].expand(-1, -1, width))
        return torch.cat([prefix, patches], dim=1)


# Compiled, the products of 64 bits came out wrong under some graphs (torch 2.14, CPU, measured).
@torch.compiler.disable()
def kept_patches(
    seed: Int64[Tensor, "pictures"], num_patches: int, *, share: float
) -> Int64[Tensor, "pictures kept"]:
    """Return the numbers of the patches that each picture keeps, ascending; at least one.

    Those with the highest of the numbers that SplitMix64 gives from the picture's seed (Steele et
    al. 2014, figure 13): the same on any device, with no generator to seed for each picture.
    """
    turns = torch.arange(1, num_patches + 1, device=seed.device)
    bits = seed[:, None] + turns * _signed(0x9E3779B97F4A7C15)  # [pictures, patches]
    bits = (bits ^ _shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shifted(bits, 27)) * _signed(0x94D049BB133111EB)
    bits = bits ^ _shifted(bits, 31)
    count = max(1, round(num_patches * share))
    return bits.topk(count, dim=1).indices.sort(dim=1).values


def drop_patches(visual: Any, share: float) -> PatchDropout:
    """Put patch dropout into an image tower of open_clip's, timm's own included, and return it.

    Raises:
        UserError: The tower has no patches to leave out.
    """
    assert 0 <= share < 1, share
    trunk = getattr(visual, "trunk", visual)
    if type(trunk).__name__ != "VisionTransformer":  # of open_clip or of timm
        raise UserError(
            f"The image tower {type(trunk).__name__} has no patches to leave out. Write "
            f"--model.patch-dropout 0, or choose a vision transformer such as ViT-B-32."
        )
    dropout = PatchDropout(share, getattr(trunk, "num_prefix_tokens", 1))
    setattr(trunk, "patch_dropout" if hasattr(trunk, "patch_dropout") else "patch_drop", dropout)
    return dropout


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _shifted(bits: Int64[Tensor, "..."], by: int) -> Int64[Tensor, "..."]:
    """Shift to the right, zeros coming in from the left."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
