"""The numbers of a ranking: pure functions of tensors, each with its direction and range.

What is ranked is walked in blocks of queries, so no ``[queries, items]`` matrix is ever held: a
rank for each query is kept, and recall at any k, mean and median rank follow from the ranks.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vlp.errors import UserError

BLOCK = 2**24
"""Similarities held at once: 64 MB of fp32."""


def similarity_blocks(
    queries: Float[Tensor, "queries dim"], items: Float[Tensor, "items dim"], block: int = BLOCK
) -> Iterator[tuple[int, Float[Tensor, "rows items"]]]:
    """Yield the first row and the similarities of some rows of the queries, in order."""
    rows = max(1, block // max(1, len(items)))
    for start in range(0, len(queries), rows):
        yield start, queries[start : start + rows] @ items.T


def similarity_of_pairs(
    queries: Float[Tensor, "queries dim"],
    items: Float[Tensor, "items dim"],
    pairs: Int64[Tensor, "pairs 2"],
) -> Float[Tensor, "pairs"]:
    """Return the similarity of each (query, item), some pairs at a time."""
    parts = pairs.split(max(1, BLOCK // (4 * queries.shape[1])))
    return torch.cat([(queries[part[:, 0]] * items[part[:, 1]]).sum(1) for part in parts])


def class_ranks(
    features: Float[Tensor, "images dim"],
    weights: Float[Tensor, "classes dim"],
    labels: Int64[Tensor, "images"],
    *,
    block: int = BLOCK,
) -> Int64[Tensor, "images"]:
    """Return the rank of each image's own class among all classes; 1 is first. Lower is better.

    Of equally similar classes the first in the list wins, as with ``argmax``: ImageNet's names hold
    "missile" and "sunglasses" twice, and the field's figures count one of each as right.
    """
    places = torch.arange(len(weights), device=weights.device)
    ranks = [torch.empty(0, dtype=torch.int64, device=features.device)]
    for start, similarity in similarity_blocks(features, weights, block):
        label = labels[start : start + len(similarity), None]
        own = similarity.gather(1, label)  # [block, 1]
        before = ~(similarity <= own) | ((similarity == own) & (places < label))
        ranks.append(before.sum(1) + 1)
    return torch.cat(ranks)


def recall_at_k(ranks: Int64[Tensor, "queries"], k: int) -> float:
    """Return the share of queries with a match among their k most similar items, in [0, 1].

    Higher is better. It is 0 or 1 for a query, however many matches it has (Karpathy and Fei-Fei
    2015, and CLIP_benchmark); a query without a match (rank 0) is left out.

    Raises:
        UserError: ``k`` is below 1, or no query has a match.
    """
    if k < 1:
        raise UserError(f"recall_at_k needs k of at least 1, got {k}.")
    return (_with_match(ranks) <= k).double().mean().item()


def mean_rank(ranks: Int64[Tensor, "queries"]) -> float:
    """Return the mean rank of the best match, from 1; lower is better."""
    return _with_match(ranks).double().mean().item()


def median_rank(ranks: Int64[Tensor, "queries"]) -> float:
    """Return the median rank of the best match, from 1; lower is better.

    Of an even number of queries, the mean of the middle two.
    """
    ordered = _with_match(ranks).sort().values
    return weighted_median(ordered, torch.ones(len(ordered)))


def weighted_median(ordered: Tensor, weights: Tensor) -> float:
    """Return the middle of values in rising order, each there as often as its weight says.

    Where the middle lies between two values, their mean; NaN where all weights are 0.
    """
    total = weights.double().cumsum(0)
    if not len(total) or not total[-1] > 0:
        return torch.nan
    # Weights such as thirds add up to whole numbers but for rounding.
    edges = total[-1] / 2 + total.new_tensor([-1e-9, 1e-9]) * total[-1]
    middle = torch.searchsorted(total, edges).clamp(max=len(total) - 1)
    return ordered[middle].double().mean().item()


def mean_reciprocal_rank(ranks: Int64[Tensor, "queries"]) -> float:
    """Return the mean of 1 / rank of the best match, in (0, 1]; higher is better.

    1 where every query finds a match first (Voorhees 1999); queries without a match are left out.
    """
    return _with_match(ranks).double().reciprocal().mean().item()


def chance_recall_at_1(matches: Int64[Tensor, "matches 2"], num_items: int) -> float:
    """Return what recall at 1 is expected to be when every order of the items is equally likely.

    A query with m matches among N items has one of them first with probability m / N; queries
    without a match are left out. It is 1 / N for one match each.
    """
    matches = torch.unique(matches, dim=0)
    return len(matches) / (len(matches[:, 0].unique()) * num_items)


def top_k_accuracy(ranks: Int64[Tensor, "images"], k: int) -> float:
    """Return the share of images whose class is among the k most similar, in [0, 1].

    Higher is better; 1 from k = classes on, so papers leave out k = 5 for fewer than 5 classes.

    Args:
        ranks: What ``class_ranks`` returns.
        k: At least 1.
    """
    return recall_at_k(ranks, k)


def mean_per_class_recall(ranks: Int64[Tensor, "images"], labels: Int64[Tensor, "images"]) -> float:
    """Return the accuracy within each class, averaged over the classes that have images.

    In [0, 1], higher is better; every class weighs the same, however many images it has
    (scikit-learn's ``balanced_accuracy_score``).
    """
    images = torch.bincount(labels).double()  # [classes]
    right = torch.bincount(labels, weights=(ranks == 1).double())
    return (right / images)[images > 0].mean().item()


def _with_match(ranks: Tensor) -> Tensor:
    found = ranks[ranks > 0]
    if not len(found):
        raise UserError("No query has a match among the items, so there is nothing to rank.")
    return found
