import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss

from eval import calibration
from eval.calibration import (
    Logits,
    confidence,
    cross_fitted,
    expected_calibration_error,
    fit_temperature,
    maximum_calibration_error,
    reliability,
)


def drawn(seed=0, images=300, classes=8, scale=20.0, bias=None):
    """Images near their class, some of them nearer to another."""
    generator = torch.Generator().manual_seed(seed)
    weights = F.normalize(torch.randn(classes, 16, generator=generator), dim=1)
    labels = torch.randint(classes, (images,), generator=generator)
    noise = torch.randn(images, 16, generator=generator)
    features = F.normalize(weights[labels] + 0.4 * noise, dim=1)
    return Logits(features, weights, labels, scale, bias)


def naive_probabilities(logits):
    cosines = logits.features @ logits.weights.T
    values = logits.scale * cosines + (logits.bias or 0)
    return values.softmax(1) if logits.bias is None else values.sigmoid()


@pytest.mark.parametrize("bias", [None, -10.0])
def test_confidences_in_blocks_equal_those_of_the_whole_matrix(bias, monkeypatch):
    logits = drawn(bias=bias)
    monkeypatch.setattr(calibration, "BLOCK", 4 * 8 * 7)  # seven images
    found = confidence(logits)
    shares = naive_probabilities(logits).double()
    own = F.one_hot(logits.labels, 8)
    assert torch.allclose(found.confidence, shares.amax(1), atol=1e-6)
    assert torch.equal(found.correct, shares.argmax(1) == logits.labels)
    assert torch.allclose(found.brier, (shares - own).square().sum(1), atol=1e-6)
    if bias is None:
        expected = log_loss(logits.labels, shares, labels=range(8))
    else:
        expected = 8 * log_loss(own.flatten(), shares.flatten())
    assert found.nll.mean().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_calibration_errors_equal_a_naive_loop_over_bins(seed):
    generator = torch.Generator().manual_seed(seed)
    # On edges of the bins, too: 1 / 15 is the last of the first bin.
    values = torch.randint(1, 46, (100,), generator=generator).double() / 45
    correct = torch.rand(100, generator=generator) < values
    gaps, weights = [], []
    for number in range(15):
        inside = [
            (c, v)
            for c, v in zip(correct.tolist(), values.tolist(), strict=True)
            if number / 15 < v <= (number + 1) / 15
        ]
        if inside:
            accuracy, mean = (sum(column) / len(inside) for column in zip(*inside, strict=True))
            gaps.append(abs(accuracy - mean))
            weights.append(len(inside) / 100)
    bins = reliability(values, correct)
    ece = sum(gap * weight for gap, weight in zip(gaps, weights, strict=True))
    assert expected_calibration_error(bins) == pytest.approx(ece)
    assert maximum_calibration_error(bins) == pytest.approx(max(gaps))


def test_known_values():
    logits = Logits(torch.eye(4), torch.ones(4, 4) / 2, torch.arange(4), 100.0)
    found = confidence(logits)  # every class is as likely
    assert found.nll.tolist() == pytest.approx([math.log(4)] * 4)
    assert found.brier.tolist() == pytest.approx([0.75] * 4)
    assert expected_calibration_error(reliability(found.confidence, found.correct)) < 1e-12
    sure = reliability(torch.ones(10), torch.arange(10) < 6)  # always sure, right in 6 of 10
    assert expected_calibration_error(sure) == pytest.approx(0.4)


@pytest.mark.parametrize("bias", [None, -3.0])
def test_the_fitted_temperature_is_the_best_of_a_fine_grid(bias):
    logits = drawn(bias=bias)
    fitted = fit_temperature(logits)

    def loss(temperature):
        return confidence(logits, temperature).nll.mean().item()

    grid = [fitted * 1.01**step for step in range(-200, 201)]
    assert loss(fitted) <= min(map(loss, grid)) + 1e-12


def test_a_model_twice_as_sure_has_twice_the_temperature():
    logits = drawn()
    once = fit_temperature(logits)
    twice = fit_temperature(replace(logits, scale=2 * logits.scale))
    assert twice == pytest.approx(2 * once, rel=1e-6)


def test_where_no_temperature_is_too_low_or_high_it_is_the_models_own_or_the_highest():
    right = Logits(torch.eye(4), torch.eye(4), torch.arange(4), 1.0)
    assert fit_temperature(right) == 1.0
    assert fit_temperature(replace(right, labels=torch.arange(4).roll(1))) == pytest.approx(100)
    found = cross_fitted(
        replace(right, features=torch.eye(4).repeat(5, 1), labels=torch.arange(20) % 4)
    )
    assert found.temperature.value == 1.0
    assert not found.temperature.influence.any()


def test_the_temperature_hangs_on_each_image_as_a_fit_without_it_says():
    logits = drawn(scale=60.0)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    whole, half = cross_fitted(logits).temperature, order[:150]
    own = fit_temperature(logits[half])
    for place in (0, 75, 149):
        rest = torch.cat([half[:place], half[place + 1 :]])
        pull = 149 * (own - fit_temperature(logits[rest])) * whole.value / own
        assert whole.influence[half[place]].item() == pytest.approx(pull, rel=0.1, abs=0.02)
    assert whole.influence.mean().item() == pytest.approx(0, abs=1e-9)


def test_each_half_is_read_at_the_temperature_of_the_other():
    logits = drawn(scale=60.0)
    found, temperature = cross_fitted(logits)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    first, second = order[:150], order[150:]
    fitted = [fit_temperature(logits[half]) for half in (first, second)]
    expected = confidence(logits[first], fitted[1])
    assert torch.equal(found.nll[first], expected.nll)
    assert torch.equal(found.correct, confidence(logits).correct)
    assert temperature.value == pytest.approx(math.sqrt(fitted[0] * fitted[1]))
    before = reliability(*confidence(logits)[:2])
    after = reliability(*found[:2])
    assert expected_calibration_error(after) < expected_calibration_error(before)
