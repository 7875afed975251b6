"""Each image picks its text out of the batch, and each text its image."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from training.matches import own, refuse_fields, same_group
from vlp.errors import UserError
from vlp.types import Pairs


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """Symmetric cross-entropy over the batch, in nats per pair; lower is better.

    loss_i = -1/2 log( exp(s x_i.y_i) / sum_j exp(s x_i.y_j) )
             -1/2 log( exp(s x_i.y_i) / sum_j exp(s x_j.y_i) )

    Pairs of the same group as i are left out of both sums, all but i itself: this loss knows one
    match, and another pair with the same caption is none of its negatives. Features that cannot be
    told apart give log N for a batch of N groups of one.

    Source: CLIP (Radford et al. 2021, arXiv:2103.00020, figure 3); the same loss in ConVIRT (Zhang
    et al. 2020, arXiv:2010.00747, equations 2-4) and ALIGN (Jia et al. 2021, arXiv:2102.05918,
    equations 1-2). Takes: image, text, group.
    """

    start_scale: ClassVar[float] = 1 / 0.07
    start_bias: ClassVar[float | None] = None
    max_scale: ClassVar[float] = 100.0

    label_smoothing: float = 0.0
    """Share of the target spread evenly over all pairs that are not left out, in [0, 1)."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing is {self.label_smoothing}. Write 0 up to below 1.")

    def __call__(
        self,
        local: Pairs,
        world: Pairs,
        rows: Int64[Tensor, "batch"],
        scale: Float[Tensor, ""],
        bias: Float[Tensor, ""] | None,
    ) -> Float[Tensor, ""]:
        """Return the mean loss of this process's pairs against the pairs of every process.

        Args:
            local: This process's pairs.
            world: The pairs of every process, in rank order.
            rows: The row of ``world`` that each local pair is.
            scale: Factor on the cosines.
            bias: Not taken: a softmax does not change with it.
        """
        refuse_fields(self, local)
        left_out = same_group(local, world) & ~own(rows, len(world.text))  # [batch, world]
        image_to_text = self._direction(scale * local.image @ world.text.T, rows, left_out)
        text_to_image = self._direction(scale * local.text @ world.image.T, rows, left_out)
        return (image_to_text + text_to_image) / 2

    def _direction(
        self,
        logits: Float[Tensor, "batch world"],
        rows: Int64[Tensor, "batch"],
        left_out: Bool[Tensor, "batch world"],
    ) -> Float[Tensor, ""]:
        log_shares = F.log_softmax(logits.masked_fill(left_out, -torch.inf), dim=1)
        matched = log_shares.gather(1, rows[:, None]).squeeze(1)  # [batch]
        if not self.label_smoothing:
            return -matched.mean()
        evenly = log_shares.masked_fill(left_out, 0).sum(1) / (~left_out).sum(1)
        return -((1 - self.label_smoothing) * matched + self.label_smoothing * evenly).mean()
