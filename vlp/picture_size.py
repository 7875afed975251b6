"""An image tower on pictures of another size than its own, as CLIPA's first, longer stage has them.

The weights stay those of the full size; each step sees the position embeddings resized to the
pictures, and the gradient goes back through the resizing. The features are those of a tower that
was built for the smaller pictures from the same weights.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from vlp.errors import UserError


def encode_at_any_size(
    visual: nn.Module, pixels: Float[Tensor, "images 3 height width"]
) -> Float[Tensor, "images dim"]:
    """Return what the tower makes of pictures, with position embeddings for their size."""
    found = _positions(visual)
    if found is None:
        return visual(pixels)
    name, positions, grid, patch = found
    wanted = (pixels.shape[-2] // patch[0], pixels.shape[-1] // patch[1])
    trunk: Any = getattr(visual, "trunk", None)
    if wanted == grid or getattr(trunk, "dynamic_img_size", False):  # timm resizes in the same way
        return visual(pixels)
    if trunk is not None:
        trunk.patch_embed.strict_img_size = False
    return functional_call(visual, {name: _resized(positions, grid, wanted)}, (pixels,))


def check_size(visual: nn.Module, side: int) -> None:
    """Raise UserError unless the tower can take pictures with this side in pixels."""
    trunk: Any = getattr(visual, "trunk", visual)
    found = _positions(visual)
    is_fixed = hasattr(trunk, "patch_embed") or hasattr(trunk, "attnpool")
    if (found is None and is_fixed) or getattr(trunk, "rope", None) is not None:
        raise UserError(
            f"The image tower ({type(trunk).__name__}) takes pictures of one size only. Leave out "
            f"size={side} from --stages, or train in two runs with --model.image-size."
        )
    if found is not None and any(side % patch for patch in found[3]):
        raise UserError(f"A picture of {side} has no whole patches of {found[3][0]} pixels.")


def _positions(visual: Any) -> tuple[str, Tensor, tuple[int, int], tuple[int, int]] | None:
    """Return a vision transformer's position embeddings: name, value, grid, patch; or None."""
    if hasattr(visual, "positional_embedding") and hasattr(visual, "grid_size"):
        value, grid, patch = visual.positional_embedding, visual.grid_size, visual.patch_size
        return "positional_embedding", value, tuple(grid), tuple(patch)
    trunk: Any = getattr(visual, "trunk", None)
    if getattr(trunk, "pos_embed", None) is None or not hasattr(trunk, "patch_embed"):
        return None
    grid, patch = trunk.patch_embed.grid_size, trunk.patch_embed.patch_size
    return "trunk.pos_embed", trunk.pos_embed, tuple(grid), tuple(patch)


def _resized(positions: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Return ``[..., tokens, dim]`` for another grid, as open_clip and timm resize weights."""
    first = positions.shape[-2] - grid[0] * grid[1]  # class and register tokens
    flat = positions.reshape(-1, positions.shape[-1])  # [tokens, dim]
    area = flat[first:].float().T.reshape(1, -1, *grid)  # [1, dim, height, width]
    area = F.interpolate(area, size=wanted, mode="bicubic", antialias=True, align_corners=False)
    tokens = torch.cat([flat[:first], area[0].flatten(1).T.to(flat.dtype)])  # [tokens, dim]
    return tokens.reshape(*positions.shape[:-2], *tokens.shape)
