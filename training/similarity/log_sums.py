"""Log-sum-exps over an anchor's negatives: the small vectors that contrastive losses are made of.

Softmax-like losses need of N x N similarities only, for each anchor, the similarity to its own
pair and log-sum-exps over its negatives. These are computed tile by tile here, in both directions
from the same tile where one process holds the whole batch; backward computes the tiles again.

The sum runs over negatives only: then a loss near zero, log(1 + exp(negatives - own)), loses no
digits. The vectors and the own similarities are in fp64, which costs nothing; the tiles stay in
fp32. So at scale 100 and a loss of 1e-3 the gradient is right to 2e-6.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.similarity.diagnostics import Extremes, note_tile
from training.similarity.tiles import FeatureGradients, Tiles, in_full_precision

EMPTY = -1e30
"""The log-sum-exp over no negatives. Finite, so that no difference of two is NaN; far enough below
every logarithm of numbers in fp32 that adding any leaves it as it is."""

HEADROOM = 60.0
"""exp(HEADROOM) times the number of columns is still finite in fp32, and so is its inverse."""

LOWEST_SUM = 1e-26
"""A sum of exponentials from here on has all its large terms far above the smallest in fp32."""


class LogSums(NamedTuple):
    """What one direction of a batch says of each of its anchors, in fp64."""

    own: Float[Tensor, "anchors"]
    """Scaled similarity to the anchor's own pair; 0 where that is not among the others."""
    negatives: Float[Tensor, "powers anchors"]
    """log sum_j exp(power * s_ij) over the anchor's negatives j; EMPTY where it has none. Power 0
    counts them."""


def log_sums(
    anchors: Float[Tensor, "anchors dim"],
    others: Float[Tensor, "others dim"],
    scale: Float[Tensor, ""],
    tiles: Tiles,
    powers: tuple[float, ...],
    extremes: Extremes | None = None,
) -> LogSums:
    """Return the log-sum-exps of each anchor over its negatives among the others."""
    anchors, others, scale = in_full_precision(anchors, others, scale)
    own, rows = _LogSums.apply(anchors, others, scale, tiles, powers, [extremes])
    return LogSums(own, rows)


def log_sums_both_ways(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    scale: Float[Tensor, ""],
    tiles: Tiles,
    powers: tuple[float, ...],
    extremes: tuple[Extremes | None, Extremes | None] = (None, None),
) -> tuple[LogSums, LogSums]:
    """Return those of images over texts and of texts over images, from the same tiles."""
    image, text, scale = in_full_precision(image, text, scale)
    own, rows, columns = _LogSums.apply(image, text, scale, tiles, powers, list(extremes))
    return LogSums(own, rows), LogSums(own, columns)


class _LogSums(torch.autograd.Function):
    """Own similarities and the log-sum-exps of one side (rows) or of two (rows and columns)."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        others: Tensor,
        scale: Tensor,
        tiles: Tiles,
        powers: tuple[float, ...],
        extremes: list[Extremes | None],
    ) -> tuple[Tensor, ...]:
        sides = [anchors, others][: len(extremes)]
        bound = tiles.scale * float(_longest(anchors) * _longest(others))
        offsets = [max(0.0, power * bound - HEADROOM) for power in powers]
        hidden = _hidden(tiles, anchors, others, extremes)
        logs = _shared_log_sums(hidden, sides, powers, offsets)
        ctx.offsets = None if logs is None else offsets
        if logs is None:
            hidden = _hidden(tiles, anchors, others, [])
            logs = _running_log_sums(hidden, sides, powers)
        ctx.tiles, ctx.powers = tiles, powers
        ctx.save_for_backward(anchors, others, *logs)
        return _own(tiles, anchors, others), *logs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_own: Tensor, *to_logs: Tensor) -> tuple[Tensor | None, ...]:
        anchors, others, *logs = ctx.saved_tensors
        # As shares of the largest, so that products with small exponentials do not underflow.
        largest = torch.stack([g.abs().amax() for g in (to_own, *to_logs)]).amax()
        largest = largest.clamp_min(torch.finfo(largest.dtype).tiny)
        to_own = to_own / largest
        shares = [gradient / largest for gradient in to_logs]
        pull = _Pull.of(ctx.tiles, ctx.powers, ctx.offsets, logs, shares, like=anchors)
        gradients = FeatureGradients(anchors, others, ctx.needs_input_grad)
        for rows, columns, logits in ctx.tiles.walk(anchors, others):
            ctx.tiles.hide(logits, rows, columns)
            to_logits = pull(logits, rows, columns)
            if (found := ctx.tiles.own(to_logits, rows, columns)) is not None:
                found[0].copy_(to_own[found[1]])
            gradients.add(to_logits, rows, columns)
        return *gradients.times(ctx.tiles.scale, largest), None, None, None


def _own(tiles: Tiles, anchors: Tensor, others: Tensor) -> Tensor:
    """Return scaled similarities to the anchors' own pairs; 0 where they are not among the others.

    Summed in fp64: near zero, the loss is as wrong as these are, and products of matrices in fp32
    are 5e-6 off at scale 100.
    """
    own = anchors.new_zeros(len(anchors), dtype=torch.float64)
    if tiles.first_own is None:
        return own
    theirs = others[tiles.first_own : tiles.first_own + len(anchors)]
    height = tiles.shape[0]
    for mine, x, y in zip(
        own.split(height), anchors.split(height), theirs.split(height), strict=True
    ):
        torch.sum(x * y, 1, dtype=torch.float64, out=mine)
    return own.mul_(tiles.scale)


def _hidden(
    tiles: Tiles, anchors: Tensor, others: Tensor, extremes: Sequence[Extremes | None]
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield tiles with -inf wherever no negative is, and let who watches see them."""
    for rows, columns, logits in tiles.walk(anchors, others):
        note_tile(extremes, tiles, logits, rows, columns)
        tiles.hide(logits, rows, columns)
        yield rows, columns, logits


def _shared_log_sums(
    hidden: Iterator[tuple[slice, slice, Tensor]],
    sides: Sequence[Tensor],
    powers: tuple[float, ...],
    offsets: list[float],
) -> list[Tensor] | None:
    """Return log-sum-exps with one offset for all; None where some sum is too small for it.

    With one offset, one exponential serves both directions, and nothing need be known of the tile.
    It reaches sums over a range of 120 nats below the largest possible; where modalities lie far
    apart at a scale of 100, or powers are above 1, some lie lower.
    """
    sums = [side.new_zeros(len(powers), len(side)) for side in sides]
    for rows, columns, logits in hidden:
        for number in _power_1_last(powers):
            terms = _exponentials(logits, powers[number], offsets[number])
            for dim, (places, side) in enumerate(zip((rows, columns), sums, strict=False)):
                side[number, places] += terms.sum(1 - dim)
    if not all(bool((side >= LOWEST_SUM).all()) for side in sums):
        return None
    return [side.double().log_().add_(_column(offsets, side)) for side in sums]


def _running_log_sums(
    hidden: Iterator[tuple[slice, slice, Tensor]],
    sides: Sequence[Tensor],
    powers: tuple[float, ...],
) -> list[Tensor]:
    """Return log-sum-exps whatever the range: each anchor has its own offset."""
    logs = [side.new_full((len(powers), len(side)), EMPTY) for side in sides]
    for rows, columns, logits in hidden:
        for number, power in enumerate(powers):
            powered = _powered(logits, power)
            for dim, (places, side) in enumerate(zip((rows, columns), logs, strict=False)):
                side[number, places] = torch.logaddexp(
                    side[number, places], powered.logsumexp(1 - dim)
                )
    return [side.double() for side in logs]


class _Pull(NamedTuple):
    """Gradients of similarities from those of log-sum-exps, tile by tile.

    d lse_i / d s_ij = power exp(power s_ij - lse_i). With a shared offset, one exp(power s_ij -
    offset) is multiplied by what all directions ask for.
    """

    tiles: Tiles
    powers: tuple[float, ...]
    offsets: list[float] | None
    logs: list[Tensor]
    factors: list[Tensor]
    """By side, for each power and anchor: what the exponential is multiplied by."""
    buffer: Tensor

    @classmethod
    def of(
        cls,
        tiles: Tiles,
        powers: tuple[float, ...],
        offsets: list[float] | None,
        logs: list[Tensor],
        to_logs: list[Tensor],
        like: Tensor,
    ) -> "_Pull":
        """Return the pull of these gradients of these log-sum-exps, for tiles ``like`` these."""
        factors = [gradient * _column(powers, gradient) for gradient in to_logs]
        if offsets is not None:
            factors = [
                factor.mul_((_column(offsets, log) - log).exp_())
                for factor, log in zip(factors, logs, strict=True)
            ]
        logs, factors = ([x.to(like.dtype) for x in vectors] for vectors in (logs, factors))
        return cls(tiles, powers, offsets, logs, factors, tiles.buffer(like))

    def __call__(self, logits: Tensor, rows: slice, columns: slice) -> Tensor:
        """Return the gradient of a tile, whose similarities are overwritten."""
        total = None
        for number in _power_1_last(self.powers):
            if self.powers[number] == 0:
                continue  # a count has no gradient
            term = self._shared if self.offsets is not None else self._running
            pulled = term(number, logits, rows, columns)
            total = pulled if total is None else total.add_(pulled)
        return logits.zero_() if total is None else total

    def _shared(self, number: int, logits: Tensor, rows: slice, columns: slice) -> Tensor:
        assert self.offsets is not None
        terms = _exponentials(logits, self.powers[number], self.offsets[number])
        asked = self.factors[0][number, rows, None]
        if len(self.factors) > 1:
            spare = self.tiles.spare(self.buffer, rows, columns)
            asked = torch.add(asked, self.factors[1][number, columns], out=spare)
        return terms.mul_(asked)

    def _running(self, number: int, logits: Tensor, rows: slice, columns: slice) -> Tensor:
        powered = _powered(logits, self.powers[number])
        total = torch.zeros_like(logits)
        for dim, (log, factor) in enumerate(zip(self.logs, self.factors, strict=True)):
            place = (number, rows, None) if dim == 0 else (number, columns)
            total.addcmul_((powered - log[place]).exp_(), factor[place])
        return total


def _column(numbers: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device=like.device)[:, None]


def _power_1_last(powers: tuple[float, ...]) -> list[int]:
    """Return the order in which powers are worked on: the last may overwrite the similarities."""
    return sorted(range(len(powers)), key=lambda number: powers[number] == 1)


def _exponentials(logits: Tensor, power: float, offset: float) -> Tensor:
    """Return exp(power * logits - offset); at power 1 it overwrites the logits."""
    powered = _powered(logits, power)
    return (powered.sub_(offset) if offset else powered).exp_()


def _powered(logits: Tensor, power: float) -> Tensor:
    """Return power * logits, -inf where they are; the same tensor at power 1."""
    if power == 0:
        return torch.zeros_like(logits).masked_fill_(logits == -torch.inf, -torch.inf)
    return logits if power == 1 else logits * power


def _longest(features: Tensor) -> Tensor:
    return torch.linalg.vector_norm(features, dim=1).max() if len(features) else features.sum()
