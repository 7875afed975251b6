"""Where matches stand among all pairs of queries and items, in sweeps over tiles of them.

No ``[queries, items]`` matrix is ever held, so 100,000 images and 500,000 captions need little more
than their features (`tests/benchmarks/eval_parity.py --full`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from eval.metrics import BLOCK, similarity_of_pairs
from eval.result import Estimate
from vlp.errors import UserError

TILE = (1024, 4096)
"""Queries and items multiplied at once: 16 MB of similarities, which caches hold. To count in tiles
takes a fifth of the time of the product; in blocks of whole rows it took three times as long."""
EXACT = 2**24
"""Pairs of which all are compared for an AUC: Flickr30k's 1,000 x 5,000 are fewer."""
DRAWN = 2**20
"""Pairs that are drawn where there are more: an AUC of them is off by 0.001 at most."""


@dataclass(frozen=True)
class Pairs:
    """All pairs of queries and items, and which of them match: n:m, in any order."""

    queries: Float[Tensor, "queries dim"]
    """Unit-length rows."""
    items: Float[Tensor, "items dim"]
    """Unit-length rows."""
    given: Int64[Tensor, "given 2"]
    """(query, item) of each match."""
    tile: tuple[int, int] = TILE
    _held: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """Tiles that matches were looked up in, as many as fit into a block."""

    @cached_property
    def matches(self) -> Int64[Tensor, "matches 2"]:
        """Each match once, sorted by query."""
        return torch.unique(self.given, dim=0)

    @cached_property
    def own(self) -> Float[Tensor, "matches"]:
        """The similarity of each match.

        It is taken from the very tile that is counted later: summed in another order, a similarity
        is another number in its last bits, and ties would come undone.
        """
        own = self.queries.new_empty(len(self.matches))
        for (start, first), some in self.matches_by_tile.items():
            similarity = self._multiply(start, first)
            query, item = self.matches[some].T
            own[some] = similarity[query - start, item - first]
            if (len(self._held) + 1) * similarity.numel() <= BLOCK:
                self._held[start, first] = similarity
        return own

    @cached_property
    def matches_by_tile(self) -> dict[tuple[int, int], Int64[Tensor, "_"]]:
        """The places of the matches in each tile that has any, by its first query and item."""
        if not len(self.matches):
            return {}
        corner = self.matches - self.matches % self.matches.new_tensor(self.tile)
        number = corner[:, 0] * (len(self.items) + 1) + corner[:, 1]
        order = number.argsort(stable=True)
        counts = torch.unique_consecutive(number[order], return_counts=True)[1].tolist()
        found = order.split(counts)
        return {(int(corner[s[0], 0]), int(corner[s[0], 1])): s for s in found}

    def tiles(self) -> Iterator[tuple[int, int, Float[Tensor, "rows columns"]]]:
        """Yield the first query, the first item and the similarities of each tile."""
        for start in range(0, len(self.queries), self.tile[0]):
            for first in range(0, len(self.items), self.tile[1]):
                known = self._held.get((start, first))
                yield start, first, self._multiply(start, first) if known is None else known

    def _multiply(self, start: int, first: int) -> Tensor:
        rows = self.queries[start : start + self.tile[0]]
        return rows @ self.items[first : first + self.tile[1]].T


class Ranks(NamedTuple):
    """The rank of the most similar match of each query and of each item; 1 is first, 0 is none."""

    of_queries: Int64[Tensor, "queries"]
    of_items: Int64[Tensor, "items"]


def match_ranks(pairs: Pairs) -> Ranks:
    """Return where queries find their best match among all items, and items among all queries.

    Lower is better. Other matches do not stand in the way of the best one. Ties count against it:
    who is as similar as the match ranks before it, and so does one whose similarity is NaN.
    """
    sides, sizes = pairs.matches.unbind(1), (len(pairs.queries), len(pairs.items))
    best = [
        pairs.own.new_full((size,), -torch.inf).scatter_reduce(0, side, pairs.own, "amax")
        for side, size in zip(sides, sizes, strict=True)
    ]
    below = [torch.zeros(size, dtype=torch.int64, device=pairs.own.device) for size in sizes]
    numbers = pairs.own.new_empty(pairs.tile)
    for start, first, similarity in pairs.tiles():
        rows, columns = (
            slice(at, at + n) for at, n in zip((start, first), similarity.shape, strict=True)
        )
        # As numbers, which are summed several times as fast as truth values.
        is_below = numbers[: similarity.shape[0], : similarity.shape[1]]
        torch.lt(similarity, best[0][rows, None], out=is_below)
        below[0][rows] += is_below.sum(1).long()
        torch.lt(similarity, best[1][columns], out=is_below)
        below[1][columns] += is_below.sum(0).long()
    return Ranks(
        *(
            _ranks(side, pairs.own, top, size - under)
            for side, top, under, size in zip(sides, best, below, reversed(sizes), strict=True)
        )
    )


def match_auc(pairs: Pairs, *, exact: int = EXACT) -> Estimate:
    """Return how likely a match is more similar than another pair, ties for half, in [0, 1].

    Higher is better; 0.5 is chance. The area under the ROC curve, which is the statistic of Mann
    and Whitney (1947), and how it hangs on each query. It is over all pairs; beyond ``exact`` of
    them, over all matches and a million other pairs, drawn at random, always the same.

    Raises:
        UserError: There is no match, or no other pair.
    """
    true, order = pairs.own.sort()
    num_queries, num_matches = len(pairs.queries), len(true)
    is_all = num_queries * len(pairs.items) <= exact
    few = drawn_others(pairs, max(1, DRAWN // num_queries))
    # Of each query: its other pairs, and twice the matches below them, ties for half.
    others, below = torch.zeros(2, num_queries, dtype=torch.float64, device=true.device)
    # Other pairs by how many matches are below them, each counted twice.
    passed = torch.zeros(num_matches + 1, dtype=torch.int64, device=true.device)
    ends = torch.cat([true, true.new_full((1,), torch.nan)])
    for query, similarity, sign in _all_others(pairs) if is_all else few:
        place = torch.searchsorted(true, similarity, out_int32=True)
        twice = 2 * place.sum(1)
        count = 2 * torch.bincount(place.flatten(), minlength=len(passed))
        tied = similarity == ends[place]
        if tied.any():
            past = torch.searchsorted(true, similarity[tied], right=True)
            twice.index_add_(0, tied.nonzero()[:, 0], past - place[tied])
            for places, change in ((past, 1), (place[tied], -1)):
                count += change * torch.bincount(places, minlength=len(passed))
        passed += sign * count
        others += sign * similarity.shape[1] * torch.bincount(query, minlength=num_queries)
        below.index_add_(0, query, sign * twice.double())
    if not num_matches or others.sum() <= 0:
        raise UserError("An AUC compares matches with other pairs, and here is one kind only.")
    wins = passed.cumsum(0)[:-1].double() / (2 * others.sum())  # [matches]
    value = wins.mean()
    owner = pairs.matches[order, 0]
    of_matches = torch.bincount(owner, wins - value, minlength=num_queries) / num_matches
    above = others - below / (2 * num_matches)
    of_others = (above - others * value) / others.sum()
    return Estimate(value.item(), num_queries * (of_matches + of_others))


def _ranks(side: Tensor, own: Tensor, best: Tensor, not_below: Tensor) -> Tensor:
    """Return the ranks of one side; its own matches do not stand before the best of them."""
    level = side[~(own < best[side])]
    before = not_below - torch.bincount(level, minlength=len(best))
    has_match = torch.bincount(side, minlength=len(best)) > 0
    return torch.where(has_match, before + 1, 0)


def _all_others(pairs: Pairs) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield queries, similarities ``[queries, _]`` of each, and 1; then -1 to take matches away."""
    for start, _, similarity in pairs.tiles():
        rows = torch.arange(start, start + len(similarity), device=similarity.device)
        yield rows, similarity, 1
    yield pairs.matches[:, 0], pairs.own[:, None], -1


def drawn_others(pairs: Pairs, each: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield the same of random pairs, ``each`` times one for each query; matches are left out."""
    generator, size = torch.Generator().manual_seed(0), len(pairs.items)
    known = pairs.matches[:, 0] * size + pairs.matches[:, 1]
    for _ in range(each):
        item = torch.randint(size, (len(pairs.queries),), generator=generator).to(known.device)
        query = torch.arange(len(item), device=known.device)
        query = query[~torch.isin(query * size + item, known)]
        drawn = torch.stack([query, item[query]], 1)
        yield query, similarity_of_pairs(pairs.queries, pairs.items, drawn)[:, None], 1
