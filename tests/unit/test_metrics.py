import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from eval.metrics import (
    chance_recall_at_1,
    class_ranks,
    mean_per_class_recall,
    mean_rank,
    mean_reciprocal_rank,
    median_rank,
    recall_at_k,
    top_k_accuracy,
    weighted_median,
)
from eval.ranking import Pairs, match_auc, match_ranks
from vlp.errors import UserError


def features_with_ties(rows, dim, generator):
    """Small whole numbers: many rows are equally similar, and products are exact."""
    return torch.randint(-1, 2, (rows, dim), generator=generator).float()


def naive_rank(similarity, matches):
    """Sort with every tie against the query: an item that matches stands behind its equals."""
    if not matches:
        return 0
    order = sorted(range(len(similarity)), key=lambda i: (-similarity[i], i in matches))
    return 1 + min(place for place, item in enumerate(order) if item in matches)


def ranks_of(queries, items, matches):
    """The ranks that queries find their matches at."""
    return match_ranks(Pairs(queries, items, matches)).of_queries


@pytest.mark.parametrize("seed", range(20))
def test_ranks_both_ways_in_tiles_equal_a_naive_sort(seed):
    generator = torch.Generator().manual_seed(seed)
    num_queries, num_items, dim = torch.randint(1, 30, (3,), generator=generator).tolist()
    queries = features_with_ties(num_queries, dim, generator)
    items = features_with_ties(num_items, dim, generator)
    matches = torch.rand(num_queries, num_items, generator=generator).lt(0.1).nonzero()
    shuffled = matches[torch.randperm(len(matches), generator=generator)]
    similarity = (queries @ items.T).tolist()
    naive = [
        naive_rank(similarity[q], set(matches[matches[:, 0] == q, 1].tolist()))
        for q in range(num_queries)
    ]
    back = matches.flip(1)
    naive_back = [
        naive_rank([row[i] for row in similarity], set(back[back[:, 0] == i, 1].tolist()))
        for i in range(num_items)
    ]
    for tile in ((1, 1), (7, 3), (1024, 4096)):
        found = match_ranks(Pairs(queries, items, shuffled, tile))
        assert found.of_queries.tolist() == naive
        assert found.of_items.tolist() == naive_back


@pytest.mark.parametrize("seed", range(10))
def test_accuracy_and_class_recall_equal_a_naive_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    images, classes, dim = torch.randint(2, 30, (3,), generator=generator).tolist()
    features = features_with_ties(images, dim, generator)
    weights = features_with_ties(classes, dim, generator)
    labels = torch.randint(0, classes, (images,), generator=generator)
    ranks = class_ranks(features, weights, labels, block=3 * classes)
    # Python's sort is stable: of equals, the first in the list wins.
    order = [
        sorted(range(classes), key=lambda c: -row[c]) for row in (features @ weights.T).tolist()
    ]
    for k in range(1, classes + 1):
        naive = sum(label in order[i][:k] for i, label in enumerate(labels.tolist())) / images
        assert top_k_accuracy(ranks, k) == pytest.approx(naive)
    right = {c: [] for c in labels.tolist()}
    for image, label in enumerate(labels.tolist()):
        right[label].append(order[image][0] == label)
    naive = sum(sum(hits) / len(hits) for hits in right.values()) / len(right)
    assert mean_per_class_recall(ranks, labels) == pytest.approx(naive)


def test_recall_counts_a_query_once_and_leaves_out_queries_without_a_match():
    ranks = torch.tensor([1, 3, 0, 7])
    assert recall_at_k(ranks, 1) == pytest.approx(1 / 3)
    assert recall_at_k(ranks, 3) == pytest.approx(2 / 3)
    assert recall_at_k(ranks, 7) == 1
    assert mean_reciprocal_rank(ranks) == pytest.approx((1 + 1 / 3 + 1 / 7) / 3)
    assert mean_rank(ranks) == pytest.approx(11 / 3)
    assert median_rank(ranks) == 3
    assert median_rank(torch.tensor([2, 0, 5])) == 3.5


def test_features_that_cannot_be_told_apart_find_nothing():
    same = F.normalize(torch.ones(8, 4), dim=-1)
    pairs = torch.arange(8).repeat(2, 1).T
    assert ranks_of(same, same, pairs).tolist() == [8] * 8
    assert recall_at_k(ranks_of(same, same, pairs), 1) == 0


def test_a_collapsed_model_that_names_one_class_is_at_chance():
    labels = torch.arange(4).repeat(5)
    ranks = class_ranks(torch.ones(20, 3), torch.ones(4, 3), labels)
    assert top_k_accuracy(ranks, 1) == pytest.approx(1 / 4)
    assert mean_per_class_recall(ranks, labels) == pytest.approx(1 / 4)


def test_perfect_features_are_found_first():
    rows = torch.eye(6)
    pairs = torch.arange(6).repeat(2, 1).T
    assert ranks_of(rows, rows, pairs).tolist() == [1] * 6
    assert class_ranks(rows, rows, torch.arange(6)).tolist() == [1] * 6


def test_nan_counts_against_the_query():
    queries = torch.full((2, 3), torch.nan)
    pairs = torch.tensor([[0, 0], [1, 2]])
    assert ranks_of(queries, torch.eye(3), pairs).tolist() == [3, 3]


def test_chance_is_what_random_orders_get():
    matches = torch.tensor([[0, 0], [0, 1], [0, 1], [1, 4], [3, 2], [3, 3], [3, 4]])
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(600):
        order = torch.rand(4, 5, generator=generator)  # [queries, items]
        ranks = ranks_of(torch.eye(4), order.T.contiguous(), matches)
        found.append(recall_at_k(ranks, 1))
    assert chance_recall_at_1(matches, 5) == pytest.approx((2 + 1 + 3) / 15)
    assert chance_recall_at_1(matches, 5) == pytest.approx(sum(found) / len(found), abs=0.04)


@pytest.mark.parametrize("seed", range(5))
def test_the_auc_agrees_with_scikit_learn_where_scores_are_equal_too(seed):
    generator = torch.Generator().manual_seed(seed)
    queries, items = (features_with_ties(rows, 6, generator) for rows in (30, 40))
    matches = torch.rand(30, 40, generator=generator).lt(0.1)
    expected = roc_auc_score(matches.flatten(), (queries @ items.T).flatten())
    for tile in ((1, 1), (7, 13), (1024, 4096)):
        found = match_auc(Pairs(queries, items, matches.nonzero(), tile))
        assert found.value == pytest.approx(expected, abs=1e-12)


def noisy_pairs(queries, noise):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(queries, 8, generator=generator)
    items = rows.repeat_interleave(2, 0) + noise * torch.randn(2 * queries, 8, generator=generator)
    item = torch.arange(2 * queries)
    return Pairs(rows, items, torch.stack([item // 2, item], 1))


def test_the_auc_hangs_on_each_query_as_scikit_learns_does_on_its_weight():
    pairs, weight = noisy_pairs(40, noise=2), 1e-4
    is_match = torch.zeros(40, 80, dtype=torch.bool)
    is_match[pairs.matches[:, 0], pairs.matches[:, 1]] = True
    scores, found = (pairs.queries @ pairs.items.T).flatten(), match_auc(pairs)
    for query in (0, 7, 39):
        weights = torch.ones(40, 1, dtype=torch.float64)
        weights[query] += weight
        more = roc_auc_score(
            is_match.flatten(), scores, sample_weight=weights.expand(-1, 80).flatten()
        )
        slope = 40 * (more - found.value) / weight
        assert found.influence[query].item() == pytest.approx(slope, abs=2e-3)
    assert found.influence.mean().item() == pytest.approx(0, abs=1e-12)


def test_the_auc_of_drawn_pairs_is_near_that_of_all():
    pairs = noisy_pairs(400, noise=2)
    exact, drawn = match_auc(pairs), match_auc(pairs, exact=1)
    assert 0.7 < exact.value < 0.95
    assert exact.value != drawn.value
    assert drawn.value == pytest.approx(exact.value, abs=0.002)
    assert torch.corrcoef(torch.stack([exact.influence, drawn.influence]))[0, 1] > 0.99


def test_a_weighted_median_is_that_of_values_as_often_as_they_weigh():
    values = torch.tensor([1, 3, 4, 9])
    for weights in ([1, 1, 1, 1], [2, 0, 0, 3], [0, 2, 2, 0], [1, 5, 1, 1], [0, 0, 0, 1]):
        often = values.repeat_interleave(torch.tensor(weights)).double()
        found = weighted_median(values, torch.tensor(weights))
        assert found == often.quantile(0.5).item()
    assert weighted_median(values, torch.tensor([1, 2, 2, 1]) / 3) == 3.5
    assert math.isnan(weighted_median(values, torch.zeros(4)))


def test_k_below_one_and_no_match_at_all_are_refused():
    with pytest.raises(UserError, match="k of at least 1, got 0"):
        recall_at_k(torch.tensor([1]), 0)
    with pytest.raises(UserError, match="No query has a match"):
        recall_at_k(torch.tensor([0, 0]), 1)
    for matches in (torch.empty(0, 2, dtype=torch.int64), torch.tensor([[0, 0]])):
        with pytest.raises(UserError, match="one kind only"):
            match_auc(Pairs(torch.ones(1, 2), torch.ones(1, 2), matches))
