"""How much of a match another pair is, is what the frozen tower says."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from training.loss import refuse_fields
from training.similarity.log_sums import log_sums
from training.similarity.matches import other_matches
from training.similarity.recompute import in_row_chunks
from training.similarity.tiles import Tiles, in_full_precision
from vlp.types import Pairs


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """Continuously weighted contrastive loss, in nats per pair; lower is better.

    With images frozen, x the images, y the texts, and p_i = softmax_j(s x_i.y_j):

    loss_i = -1/2 sum_j w_ij log p_ij / sum_j w_ij
             -1/2 log( exp(s x_i.y_i) / sum_j exp(s x_j.y_i) ),  w_ij = (1 + u_i.u_j) / 2

    One direction is weighted by the similarity of a pre-trained tower's features u of the frozen
    modality, which carry no gradient: a teacher's where there is one, else x itself; the other is
    that of ``softmax``. Pairs of the same group as i are left out of all sums, all but i itself.
    Features that cannot be told apart give log N for a batch of N groups of one. The first
    direction holds [rows, world] for a few rows at a time.

    Source: CWCL (Srinivasa et al. 2023, arXiv:2309.14580), for a frozen tower as in LiT
    (Zhai et al. 2021, arXiv:2111.07991). Takes: image, text, group, teacher.
    """

    start_scale: ClassVar[float] = 1 / 0.07
    start_bias: ClassVar[float | None] = None
    max_scale: ClassVar[float] = 100.0
    takes: ClassVar[tuple[str, ...]] = ("teacher",)

    frozen: Literal["image", "text"] = "image"
    """The modality whose tower is frozen, and whose features can be trusted."""

    def __call__(
        self,
        local: Pairs,
        world: Pairs,
        rows: Int64[Tensor, "batch"],
        scale: Float[Tensor, ""],
        bias: Float[Tensor, ""] | None,
    ) -> Float[Tensor, ""]:
        """Return the mean loss of this process's pairs against the pairs of every process."""
        refuse_fields(self, local)
        frozen, learnt = ("image", "text") if self.frozen == "image" else ("text", "image")
        judges = [getattr(pairs.teacher or pairs, frozen).detach() for pairs in (local, world)]
        weighted = _weighted(
            (getattr(local, frozen), judges[0], local.group, rows),
            (getattr(world, learnt), judges[1], world.group),
            scale,
        )
        tiles = Tiles.of_batch(local, world, rows, scale)
        sums = log_sums(getattr(local, learnt), getattr(world, frozen), scale, tiles, (1.0,))
        plain = F.softplus(sums.negatives[0] - sums.own, threshold=40)
        return (weighted.mean() + plain.mean().to(weighted.dtype)) / 2


def _weighted(
    by_row: tuple[Tensor, Tensor, Tensor, Tensor],
    world: tuple[Tensor, Tensor, Tensor],
    scale: Tensor,
) -> Float[Tensor, "batch"]:
    """Return each frozen anchor's cross-entropy with its weights as the target."""
    others, judges, group = in_full_precision(*world)

    def term(anchors: Tensor, own_judges: Tensor, own_group: Tensor, rows: Tensor) -> Tensor:
        left_out = other_matches(own_group, group, rows)  # [rows, world]
        logits = (scale * anchors @ others.T).masked_fill(left_out, -torch.inf)
        weights = ((1 + own_judges @ judges.T) / 2).masked_fill(left_out, 0)
        surprise = -logits.log_softmax(1).masked_fill(left_out, 0)
        return (weights * surprise).sum(1) / weights.sum(1)

    return in_row_chunks(term, in_full_precision(*by_row), len(others))
