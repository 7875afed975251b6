"""Every pair as a yes-or-no question, summed up tile by tile, in one sweep.

The loss of a question needs no other question, so value and gradients come from the same tile:
three products in all, nothing to compute again, and nothing kept but the gradients.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.similarity.diagnostics import Extremes, note_tile
from training.similarity.tiles import FeatureGradients, Tiles, in_full_precision


def pairwise_sigmoid(
    anchors: Float[Tensor, "anchors dim"],
    others: Float[Tensor, "others dim"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    tiles: Tiles,
    extremes: Sequence[Extremes | None] = (),
) -> Float[Tensor, ""]:
    """Return the sum over others of -log sigmoid(z (s x.y + b)), as the mean over anchors.

    z is 1 for matches and -1 for others. Where the own pair is not among the others, matches are
    no questions at all, and neither are near-duplicates.
    """
    anchors, others, scale, bias = in_full_precision(anchors, others, scale, bias)
    return _PairwiseSigmoid.apply(anchors, others, scale, bias, tiles, extremes)


class _PairwiseSigmoid(torch.autograd.Function):
    """Value and gradients at once: backward only multiplies."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        others: Tensor,
        scale: Tensor,
        bias: Tensor,
        tiles: Tiles,
        extremes: Sequence[Extremes | None],
    ) -> Tensor:
        loss, to_bias = anchors.new_zeros(2, len(anchors))
        gradients = FeatureGradients(anchors, others, ctx.needs_input_grad)
        is_asked = tiles.first_own is not None  # of matches, too
        for rows, columns, logits in tiles.walk(anchors, others):
            note_tile(extremes, tiles, logits, rows, columns)
            if not is_asked:
                tiles.hide(logits, rows, columns)
            logits.add_(bias)
            if is_asked:
                tiles.negate_matches(logits, rows, columns)
            loss[rows] += F.softplus(logits, threshold=40).sum(1)
            if not any(ctx.needs_input_grad):
                continue
            slopes = logits.sigmoid_()
            if is_asked:
                tiles.negate_matches(slopes, rows, columns)
            to_bias[rows] += slopes.sum(1)
            gradients.add(slopes, rows, columns)
        found = gradients.times(tiles.scale, 1 / len(anchors))
        ctx.save_for_backward(*found, to_bias.mean())
        return loss.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # In place, since a copy would double the memory; autograd itself refuses a second time.
        ready = [None if known is None else known.mul_(gradient) for known in ctx.saved_tensors]
        wanted = [g if need else None for g, need in zip(ready, ctx.needs_input_grad, strict=False)]
        return *wanted, None, None
