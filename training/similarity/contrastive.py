"""Losses that ask each image for its text and each text for its image, on log-sum-exps alone.

Softmax, hard negatives, decoupled and multi-positive differ in ten lines: a formula of an anchor's
own similarity and of the log-sum-exps over its negatives. What the negatives are is settled here.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from training.loss import refuse_fields
from training.similarity.diagnostics import extremes_of, note_batch
from training.similarity.log_sums import EMPTY, LogSums, log_sums, log_sums_both_ways
from training.similarity.matches import all_hard_captions, own_hard_captions
from training.similarity.tiles import Tiles, full_dtype
from vlp.errors import UserError
from vlp.types import Pairs


class Direction(NamedTuple):
    """One direction of a batch: each anchor's similarities, and what they are of."""

    own: Float[Tensor, "batch"]
    """Scaled similarity to the anchor's own pair."""
    negatives: dict[float, Float[Tensor, "batch"]]
    """By power: log sum_j exp(power * s_ij) over the negatives; EMPTY without any."""
    anchors: Float[Tensor, "batch dim"]
    others: Float[Tensor, "world dim"]
    group: Int64[Tensor, "world"]
    """Of the others."""
    rows: Int64[Tensor, "batch"]
    """Which of the others is each anchor's own pair."""
    scale: Float[Tensor, ""]


@dataclass(frozen=True, kw_only=True)
class Contrastive(ABC):
    """A mean over pairs of two terms, image to text and text to image.

    Negatives of an anchor are the pairs of other groups, the hard captions of other groups (of
    images only) and the past features of other groups that are no near-duplicates of it.
    """

    start_scale: ClassVar[float] = 1 / 0.07
    start_bias: ClassVar[float | None] = None
    max_scale: ClassVar[float] = 100.0
    takes: ClassVar[tuple[str, ...]] = ("hard_text", "past")

    see: Literal["all", "own"] = "all"
    """The hard captions that an image is compared with: those of all pairs (NegCLIP), or only those
    of its own."""
    image_to_text: float = 0.5
    """Weight of image to text, in [0, 1]; text to image has the rest."""

    def __post_init__(self) -> None:
        if not 0 <= self.image_to_text <= 1:
            raise UserError(f"image_to_text is {self.image_to_text}. Write a weight from 0 to 1.")

    def __call__(
        self,
        local: Pairs,
        world: Pairs,
        rows: Int64[Tensor, "batch"],
        scale: Float[Tensor, ""],
        bias: Float[Tensor, ""] | None,
    ) -> Float[Tensor, ""]:
        """Return the mean loss of this process's pairs against the pairs of every process."""
        refuse_fields(self, local)
        image, text = self._directions(local, world, rows, scale)
        to_text, to_image = self.per_anchor(image), self.per_anchor(text)
        weighted = self.image_to_text * to_text + (1 - self.image_to_text) * to_image
        return weighted.mean().to(full_dtype(local.image))

    @property
    def powers(self) -> tuple[float, ...]:
        """The powers of exp(similarity) whose sums the formula needs."""
        return (1.0,)

    @abstractmethod
    def per_anchor(self, direction: Direction) -> Float[Tensor, "batch"]:
        """Return the term of each anchor in one direction."""

    def _directions(
        self, local: Pairs, world: Pairs, rows: Tensor, scale: Tensor
    ) -> tuple[Direction, Direction]:
        image, text = _of_the_batch(local, world, rows, scale, self.powers)
        more_texts, more_images = [], []
        if local.hard_text is not None:
            find = _own_hard_captions if self.see == "own" else _all_hard_captions
            more_texts.append(find(local, world, scale, self.powers))
        if local.past is not None:
            texts, images = local.past.text, local.past.image
            more_texts.append(_past(local.image, local.text, texts, local, scale, self.powers))
            more_images.append(_past(local.text, local.image, images, local, scale, self.powers))
        shared = (world.group, rows, scale)
        to_text, to_image = self._negatives(image, more_texts), self._negatives(text, more_images)
        return (
            Direction(image.own, to_text, local.image, world.text, *shared),
            Direction(text.own, to_image, local.text, world.image, *shared),
        )

    def _negatives(self, batch: LogSums, more: list[Tensor]) -> dict[float, Tensor]:
        total = batch.negatives
        for sums in more:
            total = torch.logaddexp(total, sums)
        return dict(zip(self.powers, total, strict=True))


def _of_the_batch(
    local: Pairs, world: Pairs, rows: Tensor, scale: Tensor, powers: tuple[float, ...]
) -> tuple[LogSums, LogSums]:
    """Return the sums over the pairs of every process; in one sweep where this is the only one."""
    tiles = Tiles.of_batch(local, world, rows, scale)
    extremes = extremes_of(local)
    if local.image is world.image and local.text is world.text:
        image, text = log_sums_both_ways(local.image, local.text, scale, tiles, powers, extremes)
    else:
        image = log_sums(local.image, world.text, scale, tiles, powers, extremes[0])
        text = log_sums(local.text, world.image, scale, tiles, powers, extremes[1])
    note_batch(extremes, tiles.scale, world)
    return image, text


def _all_hard_captions(
    local: Pairs, world: Pairs, scale: Tensor, powers: tuple[float, ...]
) -> Float[Tensor, "powers batch"]:
    """Return the sums of images over the hard captions of every pair."""
    texts, tiles = all_hard_captions(local, world, scale)
    return log_sums(local.image, texts, scale, tiles, powers).negatives


def _own_hard_captions(
    local: Pairs, world: Pairs, scale: Tensor, powers: tuple[float, ...]
) -> Float[Tensor, "powers batch"]:
    """Return the sums of images over their own hard captions."""
    cosines, left_out = own_hard_captions(local)
    logits = scale * cosines.double()
    sums = [(power * logits).masked_fill(left_out, EMPTY).logsumexp(1) for power in powers]
    return torch.stack(sums)


def _past(
    anchors: Tensor,
    mine: Tensor,
    past: Tensor,
    local: Pairs,
    scale: Tensor,
    powers: tuple[float, ...],
) -> Float[Tensor, "powers batch"]:
    """Return the sums of anchors over past features of the other modality, that of ``mine``."""
    tiles = Tiles.of_past(mine, past, local, scale)
    return log_sums(anchors, past, scale, tiles, powers).negatives
