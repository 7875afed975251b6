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
    mean_conformity,
    nearest,
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
    assert uniformity(pairs[0]).value == pytest.approx(math.log(sum(heat) / len(heat)), rel=1e-5)
    heat = [
        math.exp(-2 * squared(x, y))
        for i, x in enumerate(image)
        for j, y in enumerate(text)
        if i != j
    ]
    expected = math.log(sum(heat) / len(heat))
    assert cross_uniformity(*pairs).value == pytest.approx(expected, rel=1e-5)


def test_the_gap_between_centres_equals_a_naive_loop(pairs):
    centres = [[sum(column) / COUNT for column in of.T.tolist()] for of in pairs]
    assert centroid_gap(*pairs).value == pytest.approx(math.sqrt(squared(*centres)), rel=1e-5)
    assert centroid_gap(pairs[0], pairs[0]).value == 0


def test_rank_me_equals_the_entropy_of_singular_values(pairs):
    for rows in (pairs[0], pairs[0][:5], 100 * pairs[1]):
        values = torch.linalg.svdvals(rows.double())
        shares = [v / values.sum().item() + 1e-7 for v in values.tolist()]
        expected = math.exp(-sum(share * math.log(share) for share in shares))
        assert rank_me(rows).value == pytest.approx(expected, rel=1e-6)


def test_the_participation_ratio_equals_one_of_eigenvalues(pairs):
    values = torch.linalg.eigvalsh(torch.cov(pairs[0].double().T))
    expected = values.sum().square() / values.square().sum()
    assert participation_ratio(pairs[0]).value == pytest.approx(expected.item(), rel=1e-6)
    assert participation_ratio(pairs[0][:1].expand(4, -1)).value == 0


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
    found = nearest(text, image)
    assert torch.bincount(found.flatten(), minlength=COUNT).tolist() == counts
    mean = sum(counts) / COUNT
    second, third = (sum((c - mean) ** power for c in counts) / COUNT for power in (2, 3))
    assert hubness(found).value == pytest.approx(third / second**1.5)


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
    assert histogram_distance(first, second).value == pytest.approx(naive)
    assert histogram_distance(first, first).value == 0
    assert correlation(first, 3 * first + 1).value == pytest.approx(1)
    assert correlation(first, second).value == pytest.approx(
        torch.corrcoef(torch.stack([first, second]))[0, 1].item()
    )


def test_known_values():
    basis = torch.eye(DIM)
    assert rank_me(basis).value == pytest.approx(DIM, rel=1e-4)
    point = F.normalize(torch.ones(30, DIM), dim=1)
    assert rank_me(point).value == pytest.approx(1, rel=1e-4)
    assert uniformity(point).value == pytest.approx(0, abs=1e-6)
    assert uniformity(basis).value == pytest.approx(-4)  # all at a right angle
    assert conformity(basis).tolist() == [0] * DIM
    assert hubness(nearest(basis, basis, k=1)).value == 0
    assert dead_dimensions(point) == 1
    assert dead_dimensions(torch.cat([basis, torch.zeros(DIM, 4)], 1)) == 4 / 16


def test_modalities_apart_are_separable_and_one_cloud_is_not():
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(400, DIM, generator=generator), dim=1)
    others = F.normalize(torch.randn(400, DIM, generator=generator), dim=1)
    assert linear_separability(rows, others).value == pytest.approx(0.5, abs=0.06)
    away = torch.zeros(DIM)
    away[0] = 2
    assert linear_separability(F.normalize(rows + away, dim=1), others - away).value > 0.99


ESTIMATES = {
    "uniformity": (lambda x, y: uniformity(x), 0.999),
    "cross_uniformity": (cross_uniformity, 0.999),
    "centroid_gap": (centroid_gap, 0.99),
    "rank_me": (lambda x, y: rank_me(x), 0.999),
    "participation": (lambda x, y: participation_ratio(x), 0.98),
    "conformity": (lambda x, y: mean_conformity(conformity(x)), 0.999),
    "conformity_correlation": (lambda x, y: correlation(x[:, 0], y[:, 0]), 0.999),
    "conformity_distance": (lambda x, y: histogram_distance(x[:, 0], y[:, 0]), 0.5),
    "hubness": (lambda x, y: hubness(nearest(y, x)), 0.5),
}
"""Figures, and how well what they say of each row goes with leaving it out: those that count are
no smooth functions of their rows."""


@pytest.mark.parametrize("name", ESTIMATES)
def test_how_a_figure_hangs_on_a_row_is_what_leaving_it_out_does(name):
    figure, least = ESTIMATES[name]
    generator = torch.Generator().manual_seed(0)
    text = F.normalize(torch.randn(120, DIM, generator=generator) + 0.3, dim=1)
    image = F.normalize(text + 0.3 * torch.randn(120, DIM, generator=generator), dim=1)
    whole = figure(image, text)
    rest = [torch.arange(120) != i for i in range(120)]
    without = torch.tensor([figure(image[of], text[of]).value for of in rest])
    pull = 119 * (without.mean() - without)
    assert torch.corrcoef(torch.stack([whole.influence, pull.double()]))[0, 1] > least
    assert (whole.influence.std() / pull.std()).item() == pytest.approx(1, abs=0.35)
    assert whole.influence.mean().item() == pytest.approx(0, abs=1e-9)


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
