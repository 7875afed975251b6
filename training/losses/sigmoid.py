"""Every image-text pair is a yes-or-no question of its own."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from training.loss import refuse_fields
from training.similarity.diagnostics import extremes_of, note_batch
from training.similarity.log_sums import log_sums
from training.similarity.matches import all_hard_captions, own_hard_captions
from training.similarity.pairwise_sigmoid import pairwise_sigmoid
from training.similarity.tiles import Tiles
from vlp.errors import UserError
from vlp.types import Pairs


@dataclass(frozen=True, kw_only=True)
class Sigmoid:
    """Pairwise sigmoid loss, in nats per image, summed over the texts; lower is better.

    loss_i = -sum_j log sigmoid( z_ij (s x_i.y_j + b) ),  z_ij = 1 for a match, else -1

    Pairs of the same group are matches: each question has its own answer, so several may be yes.
    Hard captions are questions to images, past texts to images and past images to texts, all
    answered no; those of the anchor's group are not asked. Features that cannot be told apart give
    log 2 + (N - 1) log 2 at scale 0 and bias 0. Its gradients are made with its value, so it can go
    backward once.

    Source: SigLIP (Zhai et al. 2023, arXiv:2303.15343, section 3.2 and algorithm 1). Takes: image,
    text, group, hard_text, past.
    """

    start_scale: ClassVar[float] = 10.0
    # 1 pair in N is a match: from a bias of 0, the first steps would only learn that.
    start_bias: ClassVar[float | None] = -10.0
    max_scale: ClassVar[float] = 100.0
    takes: ClassVar[tuple[str, ...]] = ("hard_text", "past")

    see: Literal["all", "own"] = "all"
    """The hard captions that an image is asked about: those of all pairs, or only of its own."""

    def __call__(
        self,
        local: Pairs,
        world: Pairs,
        rows: Int64[Tensor, "batch"],
        scale: Float[Tensor, ""],
        bias: Float[Tensor, ""] | None,
    ) -> Float[Tensor, ""]:
        """Return the mean loss of this process's images against the texts of every process."""
        refuse_fields(self, local)
        if bias is None:
            raise UserError("The loss sigmoid needs an encoder with a bias; this one has none.")
        loss = _of_the_batch(local, world, rows, scale, bias)
        if local.hard_text is not None:
            find = _own_hard_captions if self.see == "own" else _all_hard_captions
            loss = loss + find(local, world, scale, bias)
        if local.past is not None:
            for anchors, mine, others in (
                (local.image, local.text, local.past.text),
                (local.text, local.image, local.past.image),
            ):
                tiles = Tiles.of_past(mine, others, local, scale)
                loss = loss + pairwise_sigmoid(anchors, others, scale, bias, tiles)
        return loss


def _of_the_batch(
    local: Pairs, world: Pairs, rows: Tensor, scale: Tensor, bias: Tensor
) -> Float[Tensor, ""]:
    tiles = Tiles.of_batch(local, world, rows, scale)
    extremes = image, text = extremes_of(local)
    if local.text is world.text:
        loss = pairwise_sigmoid(local.image, world.text, scale, bias, tiles, extremes)
    else:
        loss = pairwise_sigmoid(local.image, world.text, scale, bias, tiles, (image,))
        if text is not None:  # this loss has no need of the other direction, but who watches has
            with torch.no_grad():
                log_sums(local.text, world.image, scale, tiles, (), text)
    note_batch(extremes, tiles.scale, world)
    return loss


def _all_hard_captions(
    local: Pairs, world: Pairs, scale: Tensor, bias: Tensor
) -> Float[Tensor, ""]:
    texts, tiles = all_hard_captions(local, world, scale)
    return pairwise_sigmoid(local.image, texts, scale, bias, tiles)


def _own_hard_captions(
    local: Pairs, world: Pairs, scale: Tensor, bias: Tensor
) -> Float[Tensor, ""]:
    cosines, left_out = own_hard_captions(local)
    values = F.softplus(scale * cosines + bias, threshold=40)
    return values.masked_fill(left_out, 0).sum(1).mean()
