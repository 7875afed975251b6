"""Which pairs of the batch match: what every loss asks before it calls something a negative."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from training.similarity.tiles import Tiles, in_full_precision
from vlp.types import PADDING, Pairs


def all_hard_captions(
    local: Pairs, world: Pairs, scale: Float[Tensor, ""]
) -> tuple[Float[Tensor, "hard dim"], Tiles]:
    """Return the hard captions of every pair, and how a process's images are walked among them.

    Rows that are padding are taken out, so no loss need know of them.
    """
    texts, groups = _hard_captions(world)
    is_caption = groups != PADDING
    if not is_caption.all():
        texts, groups = texts[is_caption], groups[is_caption]
    return texts, Tiles(float(scale.detach()), local.group, groups)


def own_hard_captions(
    local: Pairs,
) -> tuple[Float[Tensor, "batch hard"], Bool[Tensor, "batch hard"]]:
    """Return the cosines of images to their own hard captions, and which are left out."""
    texts, groups = _hard_captions(local)
    image, texts = in_full_precision(local.image, texts)
    texts = texts.unflatten(0, (len(image), -1))  # [batch, hard, dim]
    cosines = (texts * image[:, None]).sum(2)  # [batch, hard]
    groups = groups.view(len(image), -1)
    return cosines, (groups == local.group[:, None]) | (groups == PADDING)


@torch.no_grad()
def hard_above_match(local: Pairs) -> Float[Tensor, ""]:
    """Return the share of hard captions, in [0, 1], as near to their image as its own or nearer.

    Lower is better. Of all places for hard captions, as processes have different numbers of those
    that are filled: where half are padding, 0.25 is what features that cannot tell would have.
    """
    cosines, left_out = own_hard_captions(local)
    image, text = in_full_precision(local.image, local.text)
    own = (image * text).sum(1)[:, None]  # [batch, 1]
    return ((cosines >= own) & ~left_out).float().mean()


def other_matches(
    group: Int64[Tensor, "rows"], world_group: Int64[Tensor, "world"], rows: Int64[Tensor, "rows"]
) -> Bool[Tensor, "rows world"]:
    """Return where pairs meet others of their group: all matches but their own pair."""
    own = rows[:, None] == torch.arange(len(world_group), device=rows.device)
    return (group[:, None] == world_group) & ~own


def mean_over_kept(
    anchors: Float[Tensor, "batch dim"],
    others: Float[Tensor, "world dim"],
    group: Int64[Tensor, "world"],
    rows: Int64[Tensor, "batch"],
) -> Float[Tensor, "batch"]:
    """Return the mean cosine of each anchor to its own pair and the pairs of other groups.

    A mean of products is a product with a mean, so this takes sums over groups and no similarities.
    """
    anchors, others = in_full_precision(anchors, others)
    _, places, sizes = group.unique(return_inverse=True, return_counts=True)
    sums = others.new_zeros(len(sizes), others.shape[1]).index_add(0, places, others)
    mine = places[rows]
    kept = others.sum(0) - sums[mine] + others[rows]  # [batch, dim]
    return (anchors * kept).sum(1) / (len(others) - sizes[mine] + 1)


def _hard_captions(pairs: Pairs) -> tuple[Float[Tensor, "hard dim"], Int64[Tensor, "hard"]]:
    """Return all hard captions of the pairs, pair by pair, and the group that each would be of."""
    assert pairs.hard_text is not None
    assert pairs.hard_group is not None, "else one equal to a caption would be its negative"
    return pairs.hard_text.flatten(0, 1), pairs.hard_group.flatten()
