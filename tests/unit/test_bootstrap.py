"""Intervals: draws of images, figures on them, against naive loops."""

import pytest
import torch

from eval.bootstrap import draw_images, interval, replicate
from eval.result import PerImage, Result, mean_of, per_image


def uncertain(num_images: int = 30) -> Result:
    """Return a mean with weights, one that leaves images out, and a figure that is no mean."""
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(num_images, generator=generator, dtype=torch.float64)
    weights = torch.randint(0, 4, (num_images,), generator=generator).double()
    some = PerImage(torch.where(weights > 0, values, torch.nan), weights)
    plain = PerImage(values, torch.ones(num_images).double())
    return Result(
        {"plain": mean_of(plain), "median": values.median().item(), "count": 30.0},
        {"plain": plain, "some": some},
        lambda rows: {"median": values[rows].median().item()},
    )


def test_every_figure_is_what_a_loop_over_the_draws_finds():
    result = uncertain()
    result.figures["some"] = 0.5
    found = replicate(result, 30, draws=7, seed=5)
    assert list(found) == ["plain", "median", "some"]  # a count has no interval
    for number, rows in enumerate(draw_images(30, 7, seed=5)):
        values, weights = result.per_image["some"]
        kept = [row for row in rows.tolist() if weights[row] > 0]
        naive = sum(values[r] * weights[r] for r in kept) / sum(weights[r] for r in kept)
        torch.testing.assert_close(found["some"][number], naive)
        plain = result.per_image["plain"].values[rows]
        torch.testing.assert_close(found["plain"][number], plain.mean())
        assert found["median"][number] == plain.median()


def test_draws_follow_from_the_seed_and_the_number_of_images_alone():
    first, again = (list(draw_images(20, 3, seed=1)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], next(draw_images(20, 1, seed=2)))
    assert not torch.equal(first[0], first[1])


def test_many_images_are_counted_in_pieces(monkeypatch):
    whole = replicate(uncertain(), 30, draws=9)
    monkeypatch.setattr("eval.bootstrap.COUNTED", 60)
    assert torch.equal(replicate(uncertain(), 30, draws=9)["plain"], whole["plain"])


def test_a_95_percent_interval_holds_the_truth_about_19_times_in_20():
    generator, held = torch.Generator().manual_seed(0), 0
    for trial in range(100):
        right = (torch.rand(100, generator=generator) < 0.3).double()
        result = Result({"acc": right.mean().item()}, {"acc": per_image(right, num_images=100)})
        draws = replicate(result, 100, draws=100, seed=trial)["acc"]
        low, high = interval(draws, right.mean().item(), num_images=100)
        held += low <= 0.3 <= high
    assert 86 <= held <= 99


def test_an_interval_lies_around_its_figure_although_draws_are_biased():
    draws = torch.linspace(2, 3, 101, dtype=torch.float64)
    assert interval(draws, 1.0, num_images=9, within=(0, 2)) == pytest.approx((0.525, 1.475))
    assert interval(draws, 1.0, num_images=9) == pytest.approx(
        (0.525, 1)
    )  # of a figure that is 1 at most
    assert all(bound != bound for bound in interval(draws * torch.nan, 1.0, num_images=9))


def test_no_hit_among_n_images_does_not_mean_that_there_is_none():
    none, all_of_them = torch.zeros(50).double(), torch.ones(50).double()
    least = 1 - 0.025 ** (1 / 100)  # Clopper and Pearson's
    assert interval(none, 0.0, num_images=100) == pytest.approx((0, least))
    assert interval(all_of_them, 1.0, num_images=100) == pytest.approx((1 - least, 1))
    assert interval(none + 0.5, 0.5, num_images=100) == (0.5, 0.5)
    median_ranks = all_of_them
    assert interval(median_ranks, 1.0, num_images=100, within=(1, torch.inf)) == (1, 1)


def test_captions_of_an_image_count_together():
    hits = torch.tensor([1.0, 0.0, 1.0, 1.0])
    found = per_image(hits, torch.tensor([0, 0, 2, 2]), num_images=4)
    assert found.values.tolist() == [0.5, 0, 1, 0]
    assert found.weights.tolist() == [2, 0, 2, 0]
    assert mean_of(found) == hits.mean()


def test_figures_of_other_pictures_are_drawn_from_those():
    result = Result(
        {"a": 0.5}, {"a": per_image(torch.tensor([0.0, 1.0]), num_images=2)}, num_images=2
    )
    assert set(replicate(result, 1000, draws=50)["a"].tolist()) <= {0.0, 0.5, 1.0}
