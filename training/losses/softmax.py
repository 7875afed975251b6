"""Each image picks its text out of the batch, and each text its image."""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from training.similarity.contrastive import Contrastive, Direction
from training.similarity.matches import mean_over_kept
from vlp.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Softmax(Contrastive):
    """Symmetric cross-entropy over the batch, in nats per pair; lower is better.

    loss_i = -1/2 log( exp(s x_i.y_i) / sum_j exp(s x_i.y_j) )
             -1/2 log( exp(s x_i.y_i) / sum_j exp(s x_j.y_i) )

    Pairs of the same group as i are left out of both sums, all but i itself: this loss knows one
    match, and another pair with the same caption is none of its negatives. Features that cannot be
    told apart give log N for a batch of N groups of one. Equal to ``hard_negative`` at alpha = 1
    and beta = 0, and to ``multi_positive`` where all groups differ.

    Source: CLIP (Radford et al. 2021, arXiv:2103.00020, figure 3); the same loss in ConVIRT (Zhang
    et al. 2020, arXiv:2010.00747, equations 2-4) and ALIGN (Jia et al. 2021, arXiv:2102.05918,
    equations 1-2); hard captions as in NegCLIP (Yuksekgonul et al. 2022, arXiv:2210.01936), past
    features as in MoCo (He et al. 2019, arXiv:1911.05722). Takes: image, text, group, hard_text,
    past.
    """

    label_smoothing: float = 0.0
    """Share of the target spread evenly over the pairs of the batch that are not left out, in
    [0, 1). Hard captions and past features get none of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing is {self.label_smoothing}. Write 0 up to below 1.")

    def per_anchor(self, direction: Direction) -> Float[Tensor, "batch"]:
        """Return log(1 + sum over negatives / own), smoothed."""
        loss = F.softplus(direction.negatives[1.0] - direction.own, threshold=40)
        if not self.label_smoothing:
            return loss
        evenly = direction.scale * mean_over_kept(
            direction.anchors, direction.others, direction.group, direction.rows
        )
        return loss + self.label_smoothing * (direction.own - evenly)
