import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from eval.metrics import (
    best_match_ranks,
    chance_recall_at_1,
    class_ranks,
    mean_per_class_recall,
    mean_rank,
    mean_reciprocal_rank,
    median_rank,
    recall_at_k,
    roc_auc,
    similarities_of_pairs_and_others,
    top_k_accuracy,
)
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


@pytest.mark.parametrize("seed", range(20))
def test_ranks_in_blocks_equal_a_naive_sort(seed):
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
    for block in (1, 7 * num_items, 2**24):
        assert best_match_ranks(queries, items, shuffled, block=block).tolist() == naive


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
    assert best_match_ranks(same, same, pairs).tolist() == [8] * 8
    assert recall_at_k(best_match_ranks(same, same, pairs), 1) == 0


def test_a_collapsed_model_that_names_one_class_is_at_chance():
    labels = torch.arange(4).repeat(5)
    ranks = class_ranks(torch.ones(20, 3), torch.ones(4, 3), labels)
    assert top_k_accuracy(ranks, 1) == pytest.approx(1 / 4)
    assert mean_per_class_recall(ranks, labels) == pytest.approx(1 / 4)


def test_perfect_features_are_found_first():
    rows = torch.eye(6)
    pairs = torch.arange(6).repeat(2, 1).T
    assert best_match_ranks(rows, rows, pairs).tolist() == [1] * 6
    assert class_ranks(rows, rows, torch.arange(6)).tolist() == [1] * 6


def test_nan_counts_against_the_query():
    queries = torch.full((2, 3), torch.nan)
    pairs = torch.tensor([[0, 0], [1, 2]])
    assert best_match_ranks(queries, torch.eye(3), pairs).tolist() == [3, 3]


def test_chance_is_what_random_orders_get():
    matches = torch.tensor([[0, 0], [0, 1], [0, 1], [1, 4], [3, 2], [3, 3], [3, 4]])
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(600):
        order = torch.rand(4, 5, generator=generator)  # [queries, items]
        ranks = best_match_ranks(torch.eye(4), order.T.contiguous(), matches)
        found.append(recall_at_k(ranks, 1))
    assert chance_recall_at_1(matches, 5) == pytest.approx((2 + 1 + 3) / 15)
    assert chance_recall_at_1(matches, 5) == pytest.approx(sum(found) / len(found), abs=0.04)


@pytest.mark.parametrize("seed", range(5))
def test_the_auc_agrees_with_scikit_learn_where_scores_are_equal_too(seed):
    generator = torch.Generator().manual_seed(seed)
    queries, items = (features_with_ties(rows, 6, generator) for rows in (30, 40))
    matches = torch.rand(30, 40, generator=generator).lt(0.1)
    similarity = queries @ items.T + matches
    expected = roc_auc_score(matches.flatten(), similarity.flatten())
    assert roc_auc(similarity[matches], similarity[~matches]) == pytest.approx(expected, abs=1e-12)
    expected = roc_auc_score(matches.flatten(), (queries @ items.T).flatten())
    found = roc_auc(*similarities_of_pairs_and_others(queries, items, matches.nonzero()))
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_auc_of_drawn_pairs_is_near_that_of_all():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(400, 8, generator=generator)
    items = queries.repeat_interleave(2, 0) + 2 * torch.randn(800, 8, generator=generator)
    matches = torch.stack([torch.arange(800) // 2, torch.arange(800)], 1)
    exact, drawn = (
        roc_auc(*similarities_of_pairs_and_others(queries, items, matches, block=block))
        for block in (2**24, 160_000)
    )
    assert 0.7 < exact < 0.95
    assert exact != drawn
    assert drawn == pytest.approx(exact, abs=0.005)


def test_k_below_one_and_no_match_at_all_are_refused():
    with pytest.raises(UserError, match="k of at least 1, got 0"):
        recall_at_k(torch.tensor([1]), 0)
    with pytest.raises(UserError, match="No query has a match"):
        recall_at_k(torch.tensor([0, 0]), 1)
    with pytest.raises(UserError, match="one kind only"):
        roc_auc(torch.ones(1), torch.ones(0))
