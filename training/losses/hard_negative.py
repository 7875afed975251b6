"""Softmax that looks harder at the negatives that look most like the match."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from training.similarity.contrastive import Contrastive, Direction
from training.similarity.log_sums import EMPTY
from vlp.errors import UserError

MOST = 100
"""Of alpha and beta: beyond, only the hardest negative would count, and 1 + beta be rounded."""


@dataclass(frozen=True, kw_only=True)
class HardNegative(Contrastive):
    """Contrastive loss with weighted negatives, in nats per pair; lower is better.

    Per direction, with s scaled similarities and N - 1 negatives:

    loss_i = -log( exp(s_ii) / (alpha exp(s_ii) + sum_{j != i} w_ij exp(s_ij)) ),
    w_ij = (N - 1) exp(beta s_ij) / sum_{k != i} exp(beta s_ik)

    The weights carry gradient, as in the code of Robinson et al.: what is descended is then the
    loss that is shown. The sum is (N - 1) sum_j exp((1 + beta) s_ij) / sum_j exp(beta s_ij). N - 1
    is the number of negatives that the anchor has: pairs of its group do not count, hard captions
    and past features do. Equal to ``softmax`` at alpha = 1 and beta = 0, to ``decoupled`` at alpha
    = 0 and beta = 0. Features that cannot be told apart give log(alpha + N - 1). An anchor without
    negatives counts 0.

    Source: HN-NCE of DiHT (Radenovic et al. 2023, arXiv:2301.02280), after Robinson et al. 2021
    (arXiv:2010.04592). Takes: image, text, group, hard_text, past.
    """

    alpha: float = 1.0
    """Weight of the match in the denominator, from 0 on."""
    beta: float = 0.25
    """How much harder negatives weigh more, from 0 on; 0 weighs all alike."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) <= MOST:
                raise UserError(f"{name} is {getattr(self, name)}. Write 0 or more, up to {MOST}.")

    @property
    def powers(self) -> tuple[float, ...]:
        """The powers of the weighted sum, of the weights' and of the count."""
        return tuple(dict.fromkeys((1 + self.beta, self.beta, 0.0)))

    def per_anchor(self, direction: Direction) -> Float[Tensor, "batch"]:
        """Return the logarithm of the denominator over the own exponential."""
        sums = direction.negatives
        weighted = sums[0.0] + sums[1 + self.beta] - sums[self.beta]
        loss = weighted - direction.own
        if self.alpha:
            loss = torch.logaddexp(loss, torch.full_like(loss, math.log(self.alpha)))
        return torch.where(sums[0.0] > EMPTY / 2, loss, 0)
