"""Similarities tile by tile: the one place where the tiled losses compute them.

A tile is computed, reduced and forgotten, so the memory of a loss is the gradients of its features
and a few tiles, however large the batch. Everything that the walk needs to know of the numbers
themselves (the scale, which groups meet in which tile) is asked before it starts, so on CUDA the
host never waits inside the loop.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vlp.types import Pairs

TILE_ELEMENTS = {"cpu": 2**18, "cuda": 2**24}
"""Similarities in a tile, by kind of device. On CPU 512 x 512 in fp32 are 1 MiB, and more are
no faster; a GPU wants products that fill it, 64 MiB each."""


class Twins(NamedTuple):
    """The anchors' own pairs in the modality of the others.

    Within a modality duplicates have a cosine near 1. Across modalities even matches have 0.3.
    """

    mine: Float[Tensor, "anchors dim"]
    others: Float[Tensor, "others dim"]
    ceiling: float
    """Cosine of the two above which the other is left out."""


@dataclass(frozen=True)
class Tiles:
    """How scale * anchors @ others.T is walked, and which of it are matches.

    An anchor's own pair is one of ``others`` or is not among them (hard captions, past features).
    Others of the anchor's group are matches.
    """

    scale: float
    anchor_group: Int64[Tensor, "anchors"]
    other_group: Int64[Tensor, "others"]
    first_own: int | None = None
    """The row of ``others`` that is the first anchor's own pair; those of the next ones follow.
    None: the anchors' own pairs are not among the others."""
    twins: "Twins | None" = None
    """By which others are near-duplicates of an anchor's own pair, and left out."""

    @classmethod
    def of_batch(
        cls, local: Pairs, world: Pairs, rows: Int64[Tensor, "batch"], scale: Float[Tensor, ""]
    ) -> "Tiles":
        """Return how one process's pairs are walked among the pairs of every process."""
        first, last = rows[[0, -1]].tolist()
        assert last - first == len(rows) - 1, "the rows of a process follow each other"
        return cls(float(scale.detach()), local.group, world.group, first_own=first)

    @classmethod
    def of_past(
        cls,
        mine: Float[Tensor, "anchors dim"],
        others: Float[Tensor, "past dim"],
        local: Pairs,
        scale: Float[Tensor, ""],
    ) -> "Tiles":
        """Return how anchors are walked among past features of the other modality.

        Args:
            mine: The anchors' own pairs, of the same modality as the others.
            others: Past features.
            local: This process's pairs, with their past.
            scale: Factor on the cosines.
        """
        assert local.past is not None
        twins = None
        if local.past.ceiling is not None:
            mine, others = in_full_precision(mine.detach(), others)
            twins = Twins(mine, others, local.past.ceiling)
        return cls(float(scale.detach()), local.group, local.past.group, twins=twins)

    def walk(self, anchors: Tensor, others: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield the rows, the columns and the scaled similarities of each tile.

        The similarities are valid until the next tile and may be overwritten.
        """
        height, width = self.shape
        _ = self._crossings  # asked now: the host waits for it
        buffer = anchors.new_empty(height * width)
        for top in range(0, len(anchors), height):
            rows = slice(top, min(top + height, len(anchors)))
            for left in range(0, len(others), width):
                columns = slice(left, min(left + width, len(others)))
                logits = self.spare(buffer, rows, columns)
                torch.addmm(
                    logits, anchors[rows], others[columns].T, beta=0, alpha=self.scale, out=logits
                )
                yield rows, columns, logits

    def buffer(self, like: Tensor) -> Tensor:
        """Return memory for one more tile."""
        return like.new_empty(math.prod(self.shape))

    @staticmethod
    def spare(buffer: Tensor, rows: slice, columns: slice) -> Tensor:
        """Return the part of a buffer that is as large as this tile."""
        height, width = rows.stop - rows.start, columns.stop - columns.start
        return buffer[: height * width].view(height, width)

    def own(self, tile: Tensor, rows: slice, columns: slice) -> tuple[Tensor, slice] | None:
        """Return the anchors' own pairs in a tile, as a view, and the anchors they are of."""
        if self.first_own is None:
            return None
        first = max(rows.start, columns.start - self.first_own)
        last = min(rows.stop, columns.stop - self.first_own)
        if first >= last:
            return None
        left = first + self.first_own - columns.start
        view = tile[first - rows.start : last - rows.start, left : left + last - first].diagonal()
        return view, slice(first, last)

    def matches(self, rows: slice, columns: slice) -> Bool[Tensor, "rows columns"] | None:
        """Return where matches are in a tile; None where no anchor meets any but its own pair."""
        height, width = self.shape
        if (rows.start // height, columns.start // width) not in self._crossings:
            return None
        return self.anchor_group[rows, None] == self.other_group[None, columns]

    def hide(self, tile: Tensor, rows: slice, columns: slice) -> None:
        """Overwrite with -inf all that are no negatives: matches, and near-duplicates of them."""
        if self.twins is not None:
            mine, others, ceiling = self.twins
            with torch.autocast(tile.device.type, enabled=False):
                cosines = mine[rows] @ others[columns].T
            tile.masked_fill_(cosines > ceiling, -torch.inf)
        if (matches := self.matches(rows, columns)) is not None:
            tile.masked_fill_(matches, -torch.inf)
        elif (own := self.own(tile, rows, columns)) is not None:
            own[0].fill_(-torch.inf)

    def negate_matches(self, tile: Tensor, rows: slice, columns: slice) -> None:
        """Turn the sign of the matches."""
        if (matches := self.matches(rows, columns)) is not None:
            tile.copy_(torch.where(matches, -tile, tile))
        elif (own := self.own(tile, rows, columns)) is not None:
            own[0].neg_()

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Height and width of a tile: a square, or less where there are fewer rows or columns."""
        budget = tile_elements(self.anchor_group)
        height = math.isqrt(budget)
        width = budget // height
        return min(height, len(self.anchor_group)) or 1, min(width, len(self.other_group)) or 1

    @cached_property
    def _crossings(self) -> set[tuple[int, int]]:
        """The tiles in which an anchor meets a match that is not its own pair.

        Duplicates are few in most batches: only their tiles pay for a mask.
        """
        height, width = self.shape
        groups, counts = self.other_group.unique(return_counts=True)
        meeting = groups[counts > 1] if self.first_own is not None else groups
        meeting = meeting[torch.isin(meeting, self.anchor_group)]
        columns_of = _tiles_of(self.other_group, meeting, width)
        return {
            (row, column)
            for group, rows in _tiles_of(self.anchor_group, meeting, height).items()
            for row in rows
            for column in columns_of[group]
        }


class FeatureGradients:
    """Gradients of features and of the scale, added up from those of similarities, tile by tile."""

    def __init__(self, anchors: Tensor, others: Tensor, needs: Sequence[bool]) -> None:
        self.anchors, self.others = anchors, others
        needs_anchors, needs_others, self.needs_scale = needs[:3]
        # That of the scale is a product with either; without both, one is added up for it.
        needs_anchors |= self.needs_scale and not needs_others
        self.to_anchors = torch.zeros_like(anchors) if needs_anchors else None
        self.to_others = torch.zeros_like(others) if needs_others else None

    def add(self, to_logits: Tensor, rows: slice, columns: slice) -> None:
        """Add what the gradient of a tile asks of its rows and columns."""
        if self.to_anchors is not None:
            self.to_anchors[rows].addmm_(to_logits, self.others[columns])
        if self.to_others is not None:
            self.to_others[columns].addmm_(to_logits.T, self.anchors[rows])

    def times(self, scale: float, factor: Tensor | float) -> list[Tensor | None]:
        """Return those of anchors, others and scale, times a factor."""
        to_scale = None
        if self.needs_scale:
            if self.to_anchors is not None:
                to_scale = torch.dot(self.to_anchors.flatten(), self.anchors.flatten()) * factor
            else:
                assert self.to_others is not None
                to_scale = torch.dot(self.to_others.flatten(), self.others.flatten()) * factor
        for gradient in (self.to_anchors, self.to_others):
            if gradient is not None:
                gradient.mul_(scale * factor)
        return [self.to_anchors, self.to_others, to_scale]


def tile_elements(tensor: Tensor) -> int:
    """Return how many similarities are held at once where this tensor is."""
    return TILE_ELEMENTS.get(tensor.device.type, TILE_ELEMENTS["cpu"])


def in_full_precision(*tensors: Any) -> list[Any]:
    """Return floating tensors in fp32, or in fp64 where they are; the others as they are."""
    return [
        x.to(full_dtype(x)) if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in tensors
    ]


def full_dtype(tensor: Tensor) -> torch.dtype:
    """Return fp32, or fp64 where the tensor is."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _tiles_of(group: Tensor, chosen: Tensor, size: int) -> dict[int, set[int]]:
    """Return in which tiles of this size each chosen group has a row."""
    places = torch.isin(group, chosen).nonzero().squeeze(1)
    found = defaultdict(set)
    for name, place in zip(group[places].tolist(), places.tolist(), strict=True):
        found[name].add(place // size)
    return found
