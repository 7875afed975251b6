"""Features cut to their first coordinates, and search that begins with few of them."""

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from eval.metrics import BLOCK
from vlp.errors import UserError

ENOUGH = 0.99
"""Share of the whole's figure that a prefix must reach to do in its place."""


def prefix(rows: Float[Tensor, "rows dim"], length: int) -> Float[Tensor, "rows length"]:
    """Return the first coordinates of each row as a unit-length row (Kusupati et al. 2022)."""
    return F.normalize(rows[:, :length], dim=1)


def prefix_lengths(dim: int) -> list[int]:
    """Return 8, 16, 32, ... and the whole length last."""
    return [length for length in (2**power for power in range(3, 20)) if length < dim] + [dim]


def area_by_octave(figures: Mapping[int, float]) -> float:
    """Return the mean of a figure over log2 of the prefix length, by trapezoids.

    The area under the curve from the shortest to the longest prefix, divided by its width: a figure
    that is the same at all lengths is its own. Higher is better for figures that are.
    """
    points = sorted(figures.items())
    if len(points) == 1:
        return points[0][1]
    area = sum(
        (value + after) / 2 * math.log2(longer / length)
        for (length, value), (longer, after) in itertools.pairwise(points)
    )
    return area / math.log2(points[-1][0] / points[0][0])


def shortest_enough(figures: Mapping[int, float], share: float = ENOUGH) -> int:
    """Return the shortest prefix whose figure is at least this share of the longest's."""
    whole = figures[max(figures)]
    return min(length for length, value in figures.items() if value >= share * whole)


def funnel_search(
    queries: Float[Tensor, "queries dim"],
    items: Float[Tensor, "items dim"],
    stages: Sequence[tuple[int, int]],
    *,
    block: int = BLOCK,
) -> Int64[Tensor, "queries kept"]:
    """Return the items that each query keeps in the end, most similar first.

    Funnel retrieval (Kusupati et al. 2022): all items are ranked by a short prefix,
    and those kept are ranked again by longer ones. Equal similarities keep the order before.

    Args:
        queries: Unit-length rows.
        items: Unit-length rows.
        stages: (prefix length, items kept), shortest prefix first.
        block: Numbers held at once.

    Raises:
        UserError: Prefixes do not grow, or more items are kept than there were.
    """
    lengths, counts = zip(*stages, strict=True)
    if list(lengths) != sorted(set(lengths)) or list(counts) != sorted(counts, reverse=True):
        raise UserError(
            f"A funnel keeps fewer items by longer prefixes at each stage, got {list(stages)}."
        )
    counts = [min(count, len(items)) for count in counts]
    # A block holds the similarities of the first stage and the items of each later one.
    widest = max([len(items), *(k * m for k, m in zip(counts, lengths[1:], strict=False))])
    short = prefix(items, lengths[0])
    parts = [torch.empty(0, counts[-1], dtype=torch.int64, device=queries.device)]
    for some in queries.split(max(1, block // widest)):
        similarity = prefix(some, lengths[0]) @ short.T  # [rows, items]
        kept = _best(similarity, counts[0])
        for length, count in zip(lengths[1:], counts[1:], strict=True):
            again = F.normalize(items[kept, :length], dim=2)  # [rows, kept, length]
            similarity = torch.einsum("rkl,rl->rk", again, prefix(some, length))
            kept = kept.gather(1, _best(similarity, count))
        parts.append(kept)
    return torch.cat(parts)


def _best(similarity: Tensor, count: int) -> Tensor:
    return similarity.argsort(dim=1, descending=True, stable=True)[:, :count]
