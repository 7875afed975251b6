"""A small part of the set whose pictures and captions vary together as those of the whole."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.columns import Columns, check_share
from data_pipelines.curation.duplicates import is_at
from data_pipelines.curation.encoded import EncodedFilter, Left, Rows, left_on_disk, unit
from vlp.errors import UserError

PER_CLASS = 3000
"""Samples of a class, on average: 1,000 classes of CC3M's 2.8 million."""
MOST = 20_000
"""Samples of a class that are compared with each other; a larger class is parted."""
REFRESH = 200
"""Picks of a class after which its scores are computed anew."""
TILE = 2048


@dataclass(frozen=True, kw_only=True)
class ClipCov(EncodedFilter):
    """Image and text feature; a share stays that keeps the cross-covariance of each class.

    ClipCov (Joshi et al. 2024, AISTATS, arXiv:2403.12267), as its code has it. With ``s(i, j)`` the
    cosine of picture i and caption j where it is positive, else 0, and means over the n samples of
    i's class, a sample is worth ::

        mean_j(s(i, j) + s(j, i)) + 2 cos(i, i) + label / 2 - centre

    where ``label`` is the cosine of its caption and its class, ``centre`` that of its picture and
    the class's mean caption plus the reverse. The best of all is picked, again and again; after
    every 200 of a class, what these have in common with its samples is taken off their worth.
    Their classes are ImageNet's, by name; here they are clusters of captions by k-means.

    It works where little is to stay, 5 to 10 %. Only samples that earlier rules left are picked.
    """

    deciding: ClassVar[tuple[str, ...]] = ("share", "classes", "seed")
    share: float = 0.1
    """Share of what comes to the rule that stays, in (0, 1]."""
    classes: int | None = None
    """None: one for ``PER_CLASS`` samples."""
    seed: int = 0
    """Draws what k-means begins with."""

    def __post_init__(self) -> None:
        EncodedFilter.__post_init__(self)
        check_share(self.share, "share")
        if self.classes is not None and self.classes < 1:
            raise UserError(f"classes={self.classes}. Give 1 or more.")

    def score(self, candidates: Sequence[Candidate]) -> list[bytes]:
        """Return the image and the text feature of each candidate: fp16, unit length."""
        image, text = self.pairs(candidates)
        return [row.tobytes() for row in np.concatenate([image, text], axis=1).astype("<f2")]

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield which samples are picked."""
        with left_on_disk(columns, _form) as left:
            picked = self._picked(left) if len(left.places) else []
        return is_at(columns, np.sort(left.places[picked]))

    def _picked(self, left: Left) -> list[int]:
        from vlp.index import assign, kmeans

        order = np.argsort(left.ids, kind="stable")
        image, text = (Rows(left.records, name, order) for name in ("image", "text"))
        number = max(1, min(len(order), self.classes or round(len(order) / PER_CLASS)))
        class_of, label = assign(text, kmeans(text, number, seed=self.seed))
        members = [
            part
            for own in (np.flatnonzero(class_of == n) for n in range(number))
            for part in np.array_split(own, -(-len(own) // MOST))
        ]
        pairs = _Pairs(image, text)
        picks = [_picks(pairs, own, label[own]) for own in members if len(own)]
        best = heapq.merge(*picks, key=lambda pick: -pick[0])
        wanted = max(1, int(self.share * len(order) + 1e-6))
        return [int(order[row]) for _, row in islice(best, wanted)]


class _Pairs(NamedTuple):
    """Features of the samples in the order of their ids."""

    image: Rows
    text: Rows

    def common(
        self, members: Int64[np.ndarray, "members"], others: Int64[np.ndarray, "others"]
    ) -> Float32[np.ndarray, "members"]:
        """Return the sum of s(i, j) + s(j, i) over the others for each member."""
        total = np.zeros(len(members), np.float32)
        for start in range(0, len(members), TILE):
            tile = slice(start, start + TILE)
            image, text = self.image[members[tile]], self.text[members[tile]]
            for first in range(0, len(others), TILE):
                some = others[first : first + TILE]
                total[tile] += np.maximum(image @ self.text[some].T, 0).sum(axis=1)
                total[tile] += np.maximum(text @ self.image[some].T, 0).sum(axis=1)
        return total

    def easiness(self, members: Int64[np.ndarray, "members"]) -> Float32[np.ndarray, "members"]:
        """Return 2 cos(i, i) less the cosines with the mean of the other side of all members."""
        image, text = self.image[members], self.text[members]
        centres = unit(image.mean(axis=0)), unit(text.mean(axis=0))
        return 2 * (image * text).sum(axis=1) - text @ centres[0] - image @ centres[1]


def _picks(
    pairs: _Pairs, members: Int64[np.ndarray, "members"], label: Float32[np.ndarray, "members"]
) -> Iterator[tuple[float, int]]:
    """Yield (worth, row) of the members of a class, the best of those that are left first."""
    count = len(members)
    cross = pairs.common(members, members) / count
    worth = cross + pairs.easiness(members) + label / 2
    left = np.arange(count)
    taken: list[int] = []
    while len(left):
        new = left[np.argsort(-worth[left], kind="stable")[:REFRESH]]
        yield from zip(worth[new].tolist(), members[new].tolist(), strict=True)
        taken += new.tolist()
        worth = worth - pairs.common(members, members[new]) / count
        worth -= (cross[taken].sum() + label[new].sum() / 2) / count
        left = np.setdiff1d(left, new)


def _form(width: int) -> np.dtype:
    return np.dtype([("image", "<f2", width // 4), ("text", "<f2", width // 4)])
