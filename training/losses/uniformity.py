"""Features spread over the sphere, within and across modalities, while matches meet."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from training.loss import refuse_fields
from training.similarity.log_sums import EMPTY, log_sums
from training.similarity.tiles import Tiles, in_full_precision
from vlp.errors import UserError
from vlp.types import Pairs

MOST = 100
"""Sharpness: beyond, only the nearest pair would count."""


@dataclass(frozen=True, kw_only=True)
class Uniformity:
    """Alignment, uniformity and cross-modal uniformity of unit-length rows; lower is better.

    loss = alignment * mean_i |x_i - y_i|^2
         + in_modal * 1/2 ( U(x, x) + U(y, y) ) + cross_modal * U(x, y),
    U(a, b) = log mean_{i, j of other groups} exp(-t |a_i - b_j|^2)

    It closes the gap between modalities that a softmax leaves, and is meant to be added to one. It
    is no mean over pairs but holds logarithms of means, so it is computed from the whole batch, the
    same on every process. Pairs of the same group are left out of U, and without any others U is
    0. Features that cannot be told apart give 0, the largest U; spread evenly, U comes near
    -2t. The papers' cross-modal sum is divided by N where this takes the mean: log N apart.

    Source: Fahim et al. 2024 (arXiv:2405.18570), after Wang and Isola 2020
    (arXiv:2005.10242). Takes: image, text, group.
    """

    start_scale: ClassVar[float | None] = None
    start_bias: ClassVar[float | None] = None
    max_scale: ClassVar[float] = 100.0

    alignment: float = 1.0
    """Weight of the squared distance of matches."""
    in_modal: float = 1.0
    """Weight of the uniformity of images and of texts."""
    cross_modal: float = 1.0
    """Weight of the uniformity of images among texts."""
    t: float = 2.0
    """Sharpness of the Gaussian potential, above 0."""

    def __post_init__(self) -> None:
        if not 0 < self.t <= MOST:
            raise UserError(f"t is {self.t}. Write a sharpness above 0, such as 2, up to {MOST}.")
        for name in ("alignment", "in_modal", "cross_modal"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}. Write a weight of 0 or more.")

    def __call__(
        self,
        local: Pairs,
        world: Pairs,
        rows: Int64[Tensor, "batch"],
        scale: Float[Tensor, ""],
        bias: Float[Tensor, ""] | None,
    ) -> Float[Tensor, ""]:
        """Return the loss of the whole batch, equal on every process."""
        refuse_fields(self, local)
        image, text = in_full_precision(world.image, world.text)
        loss = self.alignment * (image - text).square().sum(1).mean()
        if self.in_modal:
            spread = self._spread(image, image, world) + self._spread(text, text, world)
            loss = loss + self.in_modal * spread / 2
        if self.cross_modal:
            loss = loss + self.cross_modal * self._spread(image, text, world)
        return loss

    def _spread(
        self, features: Float[Tensor, "world dim"], others: Float[Tensor, "world dim"], world: Pairs
    ) -> Float[Tensor, ""]:
        """Return log mean exp(-t |a - b|^2) over pairs of other groups; 0 without any."""
        tiles = Tiles(2 * self.t, world.group, world.group, first_own=0)
        # |a - b|^2 = 2 - 2 a.b for unit-length rows.
        powers = (1.0, 0.0)
        sums, counts = log_sums(
            features, others, features.new_tensor(tiles.scale), tiles, powers
        ).negatives.logsumexp(1)
        spread = torch.where(counts > EMPTY / 2, sums - counts - 2 * self.t, 0)
        return spread.to(features.dtype)
