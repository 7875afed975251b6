import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from eval import metrics
from eval.geometry import (
    alignment,
    centroid_gap,
    conformity,
    correlation,
    cross_uniformity,
    dead_dimensions,
    histogram_distance,
    hubness,
    linear_separability,
    margins,
    occurrences,
    participation_ratio,
    rank_me,
    uniformity,
)
from vlp.errors import UserError

COUNT, DIM = 40, 12


@pytest.fixture(params=range(3))
def pairs(request, monkeypatch):
    """Images and their texts, walked in small blocks."""
    monkeypatch.setattr(metrics, "BLOCK", 7 * COUNT)
    generator = torch.Generator().manual_seed(request.param)
    text = F.normalize(torch.randn(COUNT, DIM, generator=generator) + 0.3, dim=1)
    image = F.normalize(text + 0.3 * torch.randn(COUNT, DIM, generator=generator), dim=1)
    return image, text


def squared(x, y):
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def test_alignment_and_uniformity_equal_naive_loops(pairs):
    image, text = (of.tolist() for of in pairs)
    own = [squared(x, y) for x, y in zip(image, text, strict=True)]
    assert alignment(*pairs).tolist() == pytest.approx(own, rel=1e-5)
    heat = [math.exp(-2 * squared(x, y)) for x, y in itertools.combinations(image, 2)]
    assert uniformity(pairs[0]) == pytest.approx(math.log(sum(heat) / len(heat)), rel=1e-5)
    heat = [
        math.exp(-2 * squared(x, y))
        for i, x in enumerate(image)
        for j, y in enumerate(text)
        if i != j
    ]
    expected = math.log(sum(heat) / len(heat))
    assert cross_uniformity(*pairs) == pytest.approx(expected, rel=1e-5)


def test_the_gap_between_centres_equals_a_naive_loop(pairs):
    centres = [[sum(column) / COUNT for column in of.T.tolist()] for of in pairs]
    assert centroid_gap(*pairs) == pytest.approx(math.sqrt(squared(*centres)), rel=1e-5)
    assert centroid_gap(pairs[0], pairs[0]) == 0


def test_rank_me_equals_the_entropy_of_singular_values(pairs):
    for rows in (pairs[0], pairs[0][:5], 100 * pairs[1]):
        values = torch.linalg.svdvals(rows.double())
        shares = [v / values.sum().item() + 1e-7 for v in values.tolist()]
        expected = math.exp(-sum(share * math.log(share) for share in shares))
        assert rank_me(rows) == pytest.approx(expected, rel=1e-6)


def test_the_participation_ratio_equals_one_of_eigenvalues(pairs):
    values = torch.linalg.eigvalsh(torch.cov(pairs[0].double().T))
    expected = values.sum().square() / values.square().sum()
    assert participation_ratio(pairs[0]) == pytest.approx(expected.item(), rel=1e-6)
    assert participation_ratio(pairs[0][:1].expand(4, -1)) == 0


def test_conformity_equals_a_naive_loop(pairs):
    rows = pairs[0].double()
    naive = [
        sum((rows[j] @ rows[k]).item() for k in range(COUNT) if k != j) / (COUNT - 1)
        for j in range(COUNT)
    ]
    assert conformity(pairs[0]).tolist() == pytest.approx(naive, abs=1e-6)


def test_occurrences_and_hubness_equal_naive_ones(pairs):
    image, text = pairs
    counts = [0] * COUNT
    for row in (text @ image.T).tolist():
        for place in sorted(range(COUNT), key=lambda place: -row[place])[:10]:
            counts[place] += 1
    found = occurrences(text, image)
    assert found.tolist() == counts
    mean = sum(counts) / COUNT
    second, third = (sum((c - mean) ** power for c in counts) / COUNT for power in (2, 3))
    assert hubness(found) == pytest.approx(third / second**1.5)


def test_margins_equal_a_naive_loop_and_leave_out_matches(pairs):
    image, text = pairs
    group = torch.arange(COUNT) // 2
    similarity = (image @ text.T).tolist()
    naive = [
        row[i] - max(value for j, value in enumerate(row) if j // 2 != i // 2)
        for i, row in enumerate(similarity)
    ]
    assert margins(image, text, group).tolist() == pytest.approx(naive, abs=1e-6)
    assert margins(image, text, torch.zeros(COUNT).long()).isnan().all()


def test_the_distance_of_histograms_equals_a_naive_one_and_is_zero_for_itself(pairs):
    first, second = (conformity(of) for of in pairs)
    both = torch.cat([first, second])
    low, high = both.min().item(), both.max().item()

    def shares(values):
        places = [min(49, int((v - low) / (high - low) * 50)) for v in values.tolist()]
        return [(places.count(place) + 0.5) / (COUNT + 25) for place in range(50)]

    p, q = shares(first), shares(second)
    naive = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert histogram_distance(first, second) == pytest.approx(naive)
    assert histogram_distance(first, first) == 0
    assert correlation(first, 3 * first + 1) == pytest.approx(1)
    assert correlation(first, second) == pytest.approx(
        torch.corrcoef(torch.stack([first, second]))[0, 1].item()
    )


def test_known_values():
    basis = torch.eye(DIM)
    assert rank_me(basis) == pytest.approx(DIM, rel=1e-4)
    point = F.normalize(torch.ones(30, DIM), dim=1)
    assert rank_me(point) == pytest.approx(1, rel=1e-4)
    assert uniformity(point) == pytest.approx(0, abs=1e-6)
    assert uniformity(basis) == pytest.approx(-4)  # all at a right angle
    assert conformity(basis).tolist() == [0] * DIM
    assert hubness(occurrences(basis, basis, k=1)) == 0
    assert dead_dimensions(point) == 1
    assert dead_dimensions(torch.cat([basis, torch.zeros(DIM, 4)], 1)) == 4 / 16


def test_modalities_apart_are_separable_and_one_cloud_is_not():
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(400, DIM, generator=generator), dim=1)
    others = F.normalize(torch.randn(400, DIM, generator=generator), dim=1)
    assert linear_separability(rows, others) == pytest.approx(0.5, abs=0.06)
    away = torch.zeros(DIM)
    away[0] = 2
    assert linear_separability(F.normalize(rows + away, dim=1), others - away) > 0.99


@pytest.mark.parametrize(
    "diagnostic",
    [
        uniformity,
        conformity,
        *(lambda rows, of=of: of(rows, rows) for of in (cross_uniformity, linear_separability)),
    ],
)
def test_a_single_row_is_refused_in_one_line(diagnostic):
    with pytest.raises(UserError, match="two"):
        diagnostic(torch.eye(DIM)[:1])
