"""Every image-text pair is a yes-or-no question of its own."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from training.matches import refuse_fields, same_group
from vlp.errors import UserError
from vlp.types import Pairs


@dataclass(frozen=True, kw_only=True)
class Sigmoid:
    """Pairwise sigmoid loss, in nats per image, summed over the texts; lower is better.

    loss_i = -sum_j log sigmoid( z_ij (s x_i.y_j + b) ),  z_ij = 1 for a match, else -1

    Pairs of the same group are matches: each question has its own answer, so several may be yes.
    Features that cannot be told apart give log 2 + (N - 1) log 2 at scale 0 and bias 0.

    Source: SigLIP (Zhai et al. 2023, arXiv:2303.15343, section 3.2 and algorithm 1). Takes: image,
    text, group.
    """

    start_scale: ClassVar[float] = 10.0
    # 1 pair in N is a match: from a bias of 0, the first steps would only learn that.
    start_bias: ClassVar[float | None] = -10.0
    max_scale: ClassVar[float] = 100.0

    def __call__(
        self,
        local: Pairs,
        world: Pairs,
        rows: Int64[Tensor, "batch"],
        scale: Float[Tensor, ""],
        bias: Float[Tensor, ""] | None,
    ) -> Float[Tensor, ""]:
        """Return the mean loss of this process's images against the texts of every process.

        Args:
            local: This process's pairs.
            world: The pairs of every process, in rank order.
            rows: The row of ``world`` that each local pair is.
            scale: Factor on the cosines.
            bias: Added to the scaled cosines.
        """
        refuse_fields(self, local)
        if bias is None:
            raise UserError("The loss sigmoid needs an encoder with a bias; this one has none.")
        logits = scale * local.image @ world.text.T + bias  # [batch, world]
        signs = 2.0 * same_group(local, world) - 1.0  # [batch, world]
        return -F.logsigmoid(signs * logits).sum(dim=1).mean()
