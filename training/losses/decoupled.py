"""Softmax whose denominator holds negatives only."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from training.similarity.contrastive import Contrastive, Direction
from training.similarity.log_sums import EMPTY


@dataclass(frozen=True, kw_only=True)
class Decoupled(Contrastive):
    """Decoupled contrastive loss, in nats per pair; lower is better, and there is no least value.

    Per direction: loss_i = -s_ii + log sum_{j != i} exp(s_ij)

    The match is no longer in its own denominator, so pairs that are already right pull as much as
    others: small batches learn more. Equal to ``hard_negative`` at alpha = 0 and beta = 0. Features
    that cannot be told apart give log(N - 1). An anchor without negatives counts 0.

    Source: DCL (Yeh et al. 2021, arXiv:2110.06848, equation 6). Takes: image, text, group,
    hard_text, past.
    """

    def per_anchor(self, direction: Direction) -> Float[Tensor, "batch"]:
        """Return the log-sum-exp over negatives less the own similarity."""
        negatives = direction.negatives[1.0]
        return torch.where(negatives > EMPTY / 2, negatives - direction.own, 0)
