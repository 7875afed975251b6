"""Which pairs of the batch match: what every loss asks before it calls something a negative."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from training.tiles import in_full_precision
from vlp.errors import UserError
from vlp.types import Pairs

OPTIONAL = ("views", "text_views", "hard_text", "teacher", "past")


def hard_captions(pairs: Pairs) -> tuple[Float[Tensor, "hard dim"], Int64[Tensor, "hard"]]:
    """Return all hard captions of the pairs, pair by pair, and the group that each would be of."""
    assert pairs.hard_text is not None
    texts = pairs.hard_text.flatten(0, 1)  # [batch * hard, dim]
    assert pairs.hard_group is not None, "else one equal to a caption would be its negative"
    return texts, pairs.hard_group.flatten()


def own_hard_captions(
    local: Pairs,
) -> tuple[Float[Tensor, "batch hard"], Bool[Tensor, "batch hard"]]:
    """Return the cosines of images to their own hard captions, and which are left out."""
    texts, groups = hard_captions(local)
    image, texts = in_full_precision(local.image, texts)
    texts = texts.unflatten(0, (len(image), -1))  # [batch, hard, dim]
    cosines = (texts * image[:, None]).sum(2)  # [batch, hard]
    return cosines, groups.view(len(image), -1) == local.group[:, None]


def other_matches(
    group: Int64[Tensor, "rows"], world_group: Int64[Tensor, "world"], rows: Int64[Tensor, "rows"]
) -> Bool[Tensor, "rows world"]:
    """Return where pairs meet others of their group: all matches but their own pair."""
    own = rows[:, None] == torch.arange(len(world_group), device=rows.device)
    return (group[:, None] == world_group) & ~own


def refuse_fields(loss: Any, pairs: Pairs) -> None:
    """Raise UserError where the batch holds a field that the loss does not say it ``takes``."""
    for name in OPTIONAL:
        if getattr(pairs, name) is not None and name not in fields_of(loss):
            kind = type(loss).__module__.rpartition(".")[2]
            raise UserError(f"The loss {kind} cannot use {name}. Choose a loss that takes it.")


def fields_of(loss: Any) -> tuple[str, ...]:
    """Return the optional fields of a batch that a loss takes; one that says nothing takes none."""
    return getattr(loss, "takes", ())


def mean_over_kept(
    anchors: Float[Tensor, "batch dim"],
    others: Float[Tensor, "world dim"],
    local: Pairs,
    world: Pairs,
    rows: Int64[Tensor, "batch"],
) -> Float[Tensor, "batch"]:
    """Return the mean cosine of each anchor to its own pair and the pairs of other groups.

    A mean of products is a product with a mean, so this takes sums over groups and no similarities.
    """
    anchors, others = in_full_precision(anchors, others)
    _, places, sizes = world.group.unique(return_inverse=True, return_counts=True)
    sums = others.new_zeros(len(sizes), others.shape[1]).index_add(0, places, others)
    mine = places[rows]
    kept = others.sum(0) - sums[mine] + others[rows]  # [batch, dim]
    return (anchors * kept).sum(1) / (len(others) - sizes[mine] + 1)
