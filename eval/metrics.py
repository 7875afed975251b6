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


def best_match_ranks(
    queries: Float[Tensor, "queries dim"],
    items: Float[Tensor, "items dim"],
    matches: Int64[Tensor, "matches 2"],
    *,
    block: int = BLOCK,
) -> Int64[Tensor, "queries"]:
    """Return the rank of each query's most similar match among all items; 1 is first, 0 is none.

    Other matches of the query do not stand in its way. Ties count against it: an item as similar
    as the match ranks before it, and so does one whose similarity is NaN. Lower is better.

    Args:
        queries: Unit-length rows.
        items: Unit-length rows.
        matches: (query, item) for each pair that matches, n:m, in any order.
        block: Similarities held at once.
    """
    matches = torch.unique(matches, dim=0)  # sorted by query, each pair once
    ranks = [torch.empty(0, dtype=torch.int64, device=queries.device)]
    for start, similarity in similarity_blocks(queries, items, block):
        low, high = torch.searchsorted(
            matches[:, 0].contiguous(), matches.new_tensor([start, start + len(similarity)])
        )
        query, item = matches[low:high, 0] - start, matches[low:high, 1]
        own = similarity[query, item]  # [matches of the block]
        best = similarity.new_full((len(similarity),), -torch.inf)
        best = best.scatter_reduce(0, query, own, "amax")  # [block]
        before = (~(similarity < best[:, None])).sum(1)
        before -= torch.bincount(query[~(own < best[query])], minlength=len(best))
        has_match = torch.bincount(query, minlength=len(best)) > 0
        ranks.append(torch.where(has_match, before + 1, 0))
    return torch.cat(ranks)


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
    ordered = _with_match(ranks).double().sort().values
    middle = len(ordered) // 2
    return ((ordered[middle] + ordered[(len(ordered) - 1) // 2]) / 2).item()


def mean_reciprocal_rank(ranks: Int64[Tensor, "queries"]) -> float:
    """Return the mean of 1 / rank of the best match, in (0, 1]; higher is better.

    1 where every query finds a match first (Voorhees 1999); queries without a match are left out.
    """
    return _with_match(ranks).double().reciprocal().mean().item()


def roc_auc(positive: Float[Tensor, "positives"], negative: Float[Tensor, "negatives"]) -> float:
    """Return how likely a positive scores above a negative, ties for half, in [0, 1].

    Higher is better; 0.5 is chance. The statistic of Mann and Whitney (1947), the area under the
    ROC curve, exact.

    Raises:
        UserError: There is no positive, or no negative.
    """
    if not len(positive) or not len(negative):
        raise UserError("An AUC compares matches with other pairs, and here is one kind only.")
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive.contiguous())
    not_above = torch.searchsorted(ordered, positive.contiguous(), right=True)
    wins = (below + not_above).double().sum() / 2
    return (wins / len(positive) / len(negative)).item()


def similarities_of_pairs_and_others(
    queries: Float[Tensor, "queries dim"],
    items: Float[Tensor, "items dim"],
    matches: Int64[Tensor, "matches 2"],
    *,
    block: int = BLOCK,
) -> tuple[Float[Tensor, "positives"], Float[Tensor, "negatives"]]:
    """Return the similarities of all matches, and of pairs that are none.

    Of all the others where all similarities fit in one block. Beyond, of a sixteenth of a block
    drawn at random, always the same: a million, so an AUC of them is off by 0.001 at most, two
    standard deviations.
    """
    matches = torch.unique(matches, dim=0)
    if len(queries) * len(items) <= block:
        similarity = queries @ items.T  # [queries, items]
        is_match = torch.zeros_like(similarity, dtype=torch.bool)
        is_match[matches[:, 0], matches[:, 1]] = True
        return similarity[is_match], similarity[~is_match]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack(
        [torch.randint(len(of), (block // 16,), generator=generator) for of in (queries, items)], 1
    ).to(matches.device)
    code, known = (pairs[:, 0] * len(items) + pairs[:, 1] for pairs in (drawn, matches))
    drawn = drawn[~torch.isin(code, known)]
    true = similarity_of_pairs(queries, items, matches)
    return true, similarity_of_pairs(queries, items, drawn)


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
