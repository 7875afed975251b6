import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from eval.probe import STRENGTHS, draw_shots, fit_probe, sweep_strength
from vlp.errors import UserError

NAMES = "abcdef"


def drawn(seed=0, rows=120, classes=5, dim=10):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    labels = torch.arange(rows) % classes
    noise = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return centres[labels] + 1.5 * noise, labels


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_the_probe_is_scikit_learns(strength):
    rows, labels = drawn()
    found = fit_probe(rows, labels, 5, strength=strength, tolerance=1e-9)
    theirs = LogisticRegression(C=1 / strength, max_iter=5000, tol=1e-9)
    theirs.fit(rows.numpy(), labels.numpy())
    assert torch.allclose(found.weight, torch.tensor(theirs.coef_), atol=3e-4)
    shares = found.logits(rows).softmax(1)
    assert torch.allclose(shares, torch.tensor(theirs.predict_proba(rows.numpy())), atol=1e-4)


def test_single_precision_finds_what_double_finds():
    rows, labels = drawn()
    double, single = (fit_probe(of, labels, 5, strength=1.0) for of in (rows, rows.float()))
    assert torch.allclose(double.weight, single.weight.double(), atol=1e-3)
    assert torch.equal(double.logits(rows).argmax(1), single.logits(rows.float()).argmax(1))


def test_where_it_starts_does_not_change_where_it_ends():
    rows, labels = drawn()
    cold = fit_probe(rows, labels, 5, strength=1.0, tolerance=1e-8)
    far = fit_probe(rows, labels, 5, strength=0.01)
    warm = fit_probe(rows, labels, 5, strength=1.0, start=far, tolerance=1e-8)
    assert torch.allclose(cold.weight, warm.weight, atol=1e-5)


def test_a_probe_held_to_a_centre_is_the_centre_when_held_hard_and_moves_when_not():
    rows, labels = drawn()
    centre = torch.randn(5, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    hard = fit_probe(rows, labels, 5, strength=1e6, centre=centre)
    assert torch.allclose(hard.weight, centre, atol=1e-3)
    assert not hard.bias.any()
    soft = fit_probe(rows, labels, 5, strength=1.0, centre=centre)

    def objective(weight):
        loss = F.cross_entropy(rows @ weight.T, labels, reduction="sum")
        return loss + (weight - centre).square().sum() / 2

    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        other = soft.weight + 0.1 * torch.randn(5, 10, generator=generator, dtype=torch.float64)
        assert objective(soft.weight) < objective(other)


@pytest.mark.parametrize("peak", [0, 3, 41, 48, 96])
def test_the_sweep_finds_the_peak_of_a_hill_in_15_fits(peak):
    """The probes are places in the list of strengths, and accuracy falls off from the peak."""
    found = sweep_strength(STRENGTHS.index, lambda place: 1 - abs(place - peak) / 100)
    assert found.strength == STRENGTHS[peak]
    assert len(found.accuracies) <= 15
    assert list(found.accuracies) == sorted(found.accuracies)


def test_the_strengths_are_those_of_clip():
    assert len(STRENGTHS) == 97
    assert STRENGTHS[0] == pytest.approx(1e-6)
    assert STRENGTHS[-1] == pytest.approx(1e6)
    flat = sweep_strength(lambda strength: strength, lambda _: 0.5)
    assert 0.1 < flat.strength < 10  # of equals, one in the middle
    assert [strength in flat.accuracies for strength in STRENGTHS[::16]] == [True] * 7


def test_shots_are_drawn_per_class_and_those_of_fewer_are_among_those_of_more():
    labels = torch.arange(60) % 6
    one, chosen_by = draw_shots(labels, 2, 4, seed=3, names=NAMES)
    more, _ = draw_shots(labels, 5, 4, seed=3, names=NAMES)
    assert torch.bincount(labels[one]).tolist() == [2] * 6
    assert torch.bincount(labels[chosen_by]).tolist() == [4] * 6
    assert not set(one.tolist()) & set(chosen_by.tolist())
    assert set(one.tolist()) < set(more.tolist())
    assert set(one.tolist()) != set(draw_shots(labels, 2, 4, seed=4, names=NAMES)[0].tolist())
    with pytest.raises(
        UserError, match="The class 'a' has 10 training images, and 16 shots need 17"
    ):
        draw_shots(labels, 16, 4, seed=0, names=NAMES)
