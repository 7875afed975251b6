"""Learn from a teacher which other texts fit an image, and how well."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from training.loss import refuse_fields
from training.similarity.matches import other_matches
from training.similarity.recompute import in_row_chunks
from training.similarity.tiles import in_full_precision
from vlp.errors import UserError
from vlp.types import Pairs

USUAL_SCALE = 100.0
"""Of teachers that do not say theirs: where CLIP's training ends (Radford et al. 2021)."""


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Divergence of the batch's similarity distribution from a teacher's, in nats; lower is better.

    Per direction, with q_i = softmax_j(teacher_scale * u_i.v_j) of the teacher's features and
    p_i = softmax_j(s x_i.y_j): loss_i = sum_j q_ij log(q_ij / p_ij), the mean of both directions.

    0 where the student's distributions are the teacher's. Its gradient is that of the cross-entropy
    -sum_j q_ij log p_ij, which is larger by the entropy of q. Pairs of the same group as i are left
    out of both distributions, all but i itself. Features that cannot be told apart give log N less
    the entropy of q. Holds [rows, world] for a few rows at a time.

    Source: DataCompDR of MobileCLIP (Vasu et al. 2023, arXiv:2311.17049), after
    CLIP-KD (Yang et al. 2023, arXiv:2307.12732). Takes: image, text, group, teacher.
    """

    start_scale: ClassVar[float] = 1 / 0.07
    start_bias: ClassVar[float | None] = None
    max_scale: ClassVar[float] = 100.0
    takes: ClassVar[tuple[str, ...]] = ("teacher",)
    needs: ClassVar[tuple[str, ...]] = ("teacher",)

    teacher_scale: float | None = None
    """Factor on the teacher's cosines, above 0. None: the logit scale that the teacher was trained
    to, or 100, CLIP's, where it is not known."""

    def __post_init__(self) -> None:
        if self.teacher_scale is not None and not 0 < self.teacher_scale < math.inf:
            raise UserError(f"teacher_scale is {self.teacher_scale}. Write one above 0.")

    def __call__(
        self,
        local: Pairs,
        world: Pairs,
        rows: Int64[Tensor, "batch"],
        scale: Float[Tensor, ""],
        bias: Float[Tensor, ""] | None,
    ) -> Float[Tensor, ""]:
        """Return the mean divergence of this process's pairs among the pairs of every process."""
        refuse_fields(self, local)
        own, others = local.teacher, world.teacher
        assert own is not None
        assert others is not None
        teacher_scale = self.teacher_scale or own.scale or USUAL_SCALE
        total = _divergence(
            (local.image, local.group, rows, own.image),
            (world.text, world.group, others.text),
            scale,
            teacher_scale,
        ) + _divergence(
            (local.text, local.group, rows, own.text),
            (world.image, world.group, others.image),
            scale,
            teacher_scale,
        )
        return total.mean() / 2


def _divergence(
    by_row: tuple[Tensor, Tensor, Tensor, Tensor],
    world: tuple[Tensor, Tensor, Tensor],
    scale: Tensor,
    teacher_scale: float,
) -> Float[Tensor, "batch"]:
    """Return the divergence of each anchor's distribution over the others from the teacher's."""
    others, group, teacher = in_full_precision(*world)

    def term(anchors: Tensor, own_group: Tensor, rows: Tensor, taught: Tensor) -> Tensor:
        left_out = other_matches(own_group, group, rows)  # [rows, world]
        logits = (scale * anchors @ others.T).masked_fill(left_out, -torch.inf)
        wanted = (
            (teacher_scale * taught @ teacher.T).masked_fill(left_out, -torch.inf).log_softmax(1)
        )
        surplus = (wanted - logits.log_softmax(1)).masked_fill(left_out, 0)
        return (wanted.exp() * surplus).sum(1)

    return in_row_chunks(term, in_full_precision(*by_row), len(others))
