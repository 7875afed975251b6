"""Differences between models: paired, over seeds, corrected for all that is tested."""

import math
from pathlib import Path

import pytest
import torch
from scipy.stats import t as student

from eval.bootstrap import replicate
from eval.compare import Difference, Model, Run, compare, differ, group, holm, two_sided
from eval.record import METRICS, REPLICATES, training_of, write_draws
from eval.result import Result, per_image
from vlp.checkpoint import save_encoder
from vlp.errors import UserError
from vlp.output import write_json, write_record

NUM_IMAGES, DRAWS = 400, 150


def run(right: torch.Tensor, name: str = "a", config: str | None = None) -> Run:
    """Return an evaluation of a model that is right on these images."""
    result = Result(
        {"z/acc@1": right.mean().item()}, {"z/acc@1": per_image(right, num_images=len(right))}
    )
    training = None if config is None else {"config": config, "seed": 0}
    summary = {
        "metrics": result.figures,
        "training": training,
        "images": {"z": len(right)},
        "sample_ids": "x",
        "draws": DRAWS,
        "seed": 0,
    }
    return Run(Path(name), summary, replicate(result, len(right), draws=DRAWS))


def model(*rights: torch.Tensor) -> Model:
    return Model("m", [run(right) for right in rights])


def answers(share: float, seed: int) -> torch.Tensor:
    return (torch.rand(NUM_IMAGES, generator=torch.Generator().manual_seed(seed)) < share).double()


def test_the_error_is_that_of_the_differences_of_single_images():
    first = answers(0.5, 1)
    second = first.clone()
    second[:20] = 1 - second[:20]
    found = differ(model(first), model(second), "z/acc@1")
    wanted = (second - first).std() / math.sqrt(NUM_IMAGES)
    assert found.difference == pytest.approx((second - first).mean().item())
    assert found.error == pytest.approx(wanted.item(), rel=0.2)
    apart = differ(model(first), model(answers(0.5, 2)), "z/acc@1")
    assert apart.error > 2 * found.error  # what both find hard cancels


def test_equal_models_do_not_differ():
    found = differ(model(answers(0.5, 1)), model(answers(0.5, 1)), "z/acc@1")
    assert (found.difference, found.error, found.p) == (0, 0, 1)


def test_a_difference_of_which_one_draw_is_known_does_not_stand():
    first, second = (model(answers(share, 1)) for share in (0.2, 0.9))
    for one in (first, second):
        one.runs[0].replicates["z/acc@1"][1:] = math.nan
    found = holm([differ(first, second, "z/acc@1")])[0]
    assert math.isnan(found.error)
    assert not found.stands


def test_training_seeds_are_noise_as_well():
    few = [answers(share, 4) for share in (0.3, 0.5, 0.7)]
    one = differ(model(answers(0.45, 4)), model(few[1]), "z/acc@1")
    several = differ(model(answers(0.45, 4)), model(*few), "z/acc@1")
    assert several.error > 3 * one.error
    figures = torch.stack(few).mean(1)
    draws = model(*few).draws("z/acc@1") - model(answers(0.45, 4)).draws("z/acc@1")
    assert several.error**2 == pytest.approx((draws.var() + figures.var() / 3).item())
    assert 2 <= several.freedom < 3  # of three runs, and many images
    assert one.freedom == NUM_IMAGES - 1


def test_a_difference_on_all_of_few_images_has_the_probability_of_a_permutation():
    for count, p in ((5, 1 / 16), (20, 2.0**-19)):
        first, second = (Model("m", [run(torch.full((count,), share))]) for share in (0.0, 1.0))
        found = differ(first, second, "z/acc@1")
        assert (found.difference, found.error) == (1, 0)
        assert found.p == pytest.approx(p)


def test_few_images_are_asked_by_student():
    first, second = answers(0.5, 1)[:8], answers(0.5, 5)[:8]
    found = differ(Model("m", [run(first)]), Model("m", [run(second)]), "z/acc@1")
    assert found.freedom == pytest.approx(7)


def simulated(seed: int, runs: int, images: int = 200) -> torch.Tensor:
    """Two models of equal quality: of each run, what each image scores."""
    generator = torch.Generator().manual_seed(seed)
    hard = torch.randn(images, generator=generator)
    of_model = 0.5 * torch.randn(2, 1, images, generator=generator)
    of_run = 0.2 * torch.randn(2, runs, 1, generator=generator)
    return hard + of_model + of_run + 0.5 * torch.randn(2, runs, images, generator=generator)


def hierarchical(scores: torch.Tensor, draws: int, seed: int) -> torch.Tensor:
    """Differences of two models for draws of their runs, and then of the images."""
    generator = torch.Generator().manual_seed(seed)
    _, runs, images = scores.shape
    own = torch.randint(runs, (2, draws, runs), generator=generator)
    rows = torch.randint(images, (draws, images), generator=generator)
    counts = torch.stack([torch.bincount(row, minlength=images) for row in rows]).float() / images
    means = scores @ counts.T  # [models, runs, draws]
    first, second = (of.T.gather(1, drawn).mean(1) for of, drawn in zip(means, own, strict=True))
    return second - first


@pytest.mark.parametrize("runs", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_the_error_is_that_of_a_hierarchical_bootstrap_with_the_part_of_the_runs_made_whole(runs):
    scores = simulated(0, runs)
    found = differ(model(*scores[0]), model(*scores[1]), "z/acc@1")
    between = sum(of.mean(1).var().item() / runs for of in scores)
    literal = hierarchical(scores, 4000, seed=0).var().item()
    assert found.error**2 == pytest.approx(literal + between / runs, rel=0.25)
    assert found.error**2 > between


@pytest.mark.slow
def test_95_percent_intervals_hold_the_truth_and_those_of_a_hierarchical_bootstrap_do_not():
    held = torch.zeros(2)
    for seed in range(400):
        scores = simulated(seed, runs=3)
        found = differ(model(*scores[0]), model(*scores[1]), "z/acc@1")
        literal = hierarchical(scores, 300, seed)
        low, high = literal.quantile(torch.tensor([0.025, 0.975])).tolist()
        held += torch.tensor([found.p > 0.05, low <= 0 <= high])
    ours, theirs = (held / 400).tolist()
    assert ours == pytest.approx(0.95, abs=0.03)
    assert theirs < 0.92


def test_differences_of_equal_models_rarely_stand():
    alarms = 0
    for seed in range(50):
        first, second = model(answers(0.5, seed)), model(answers(0.5, seed + 1000))
        found = holm([differ(first, second, "z/acc@1")])
        alarms += found[0].stands
    assert alarms <= 7  # 2.5 are expected


@pytest.mark.parametrize("freedom", [1.0, 2.5, 10.0, 300.0, 1e6])
@pytest.mark.parametrize("value", [0.0, 0.5, -2.0, 6.0])
def test_students_t_is_scipys(value, freedom):
    assert two_sided(value, freedom) == pytest.approx(2 * student.sf(abs(value), freedom), rel=1e-3)


def test_holm_multiplies_by_how_many_are_left():
    found = [Difference("f", "a", "b", 1, 1, 1, p) for p in (0.01, 0.04, 0.03, 0.5)]
    assert [one.adjusted for one in holm(found)] == pytest.approx([0.04, 0.09, 0.09, 0.5])


def test_runs_of_one_config_are_one_model():
    found = group(
        [run(answers(0.5, 1), "a", "c"), run(answers(0.5, 2), "b", "c"), run(answers(0.5, 3), "d")]
    )
    assert [len(one.runs) for one in found] == [2, 1]


def test_seeds_are_of_one_config_and_steps_are_not(encoder, tmp_path):
    for seed in (0, 1):
        for step in (1, 2):
            folder = tmp_path / f"run{seed}" / "checkpoints" / f"step_{step:07d}"
            folder.mkdir(parents=True)
            save_encoder(encoder, folder)
        write_record(tmp_path / f"run{seed}", "train", {"seed": seed, "lr": 1})
    found = {
        (seed, step): training_of(f"{tmp_path}/run{seed}/checkpoints/step_{step:07d}")
        for seed in (0, 1)
        for step in (1, 2)
    }
    configs = {place: of["config"] for place, of in found.items() if of is not None}
    assert configs[0, 1] == configs[1, 1] != configs[0, 2] == configs[1, 2]
    assert [of["seed"] for of in found.values() if of] == [0, 0, 1, 1]


def written(folder: Path, own: Run, **changes: object) -> Path:
    folder.mkdir()
    write_json(folder / METRICS, own.summary | changes)
    write_draws(folder, own.replicates)
    return folder


def test_compare_says_what_stands_and_what_noise_it_covers(tmp_path, capsys):
    good, bad = answers(0.8, 1), answers(0.4, 1)
    folders = [written(tmp_path / "a", run(bad)), written(tmp_path / "b", run(good))]
    found = compare(folders)
    said = capsys.readouterr().out
    assert found["differences"][0]["stands"]
    assert "1 of 1 differences stand" in said
    assert "not the seed of training" in said
    seeds = [
        written(tmp_path / f"{name}{seed}", run(answers(share, seed), config=name))
        for name, share in (("c", 0.4), ("d", 0.8))
        for seed in range(3)
    ]
    assert "the seed of training (3 and 3 runs)" in compare(seeds)["noise"]


def test_the_mean_of_a_benchmark_is_compared_with_its_datasets(tmp_path):
    folders = []
    for name, share in (("a", 0.4), ("b", 0.8)):
        own = run(answers(share, 1))
        draws = {figure: own.replicates["z/acc@1"] for figure in ("cars/main", "main")}
        metrics = dict.fromkeys(draws, own.summary["metrics"]["z/acc@1"])
        folders.append(written(tmp_path / name, own._replace(replicates=draws), metrics=metrics))
    found = compare(folders)["differences"]
    assert [one["figure"] for one in found] == ["cars/main", "main"]


def test_what_cannot_be_compared_is_told_in_a_line(tmp_path):
    own = run(answers(0.5, 1))
    a, b = written(tmp_path / "a", own), written(tmp_path / "b", own, sample_ids="y")
    with pytest.raises(UserError, match="one model to compare"):
        compare([a])
    with pytest.raises(UserError, match="not of the same images and draws: sample_ids is x and y"):
        compare([a, b])
    with pytest.raises(UserError, match=r"holds no evaluation. Give what `vlp eval"):
        compare([a, tmp_path])
    for rest in (b"", b"PK\x03\x04 cut off"):
        (b / REPLICATES).write_bytes(rest)
        with pytest.raises(UserError, match="holds no evaluation"):
            compare([a, b])
    c = written(tmp_path / "c", own)
    with pytest.raises(UserError, match=r"No figure is called wrong. There are: z/acc@1"):
        compare([a, c], figures=["wrong"])
    d = written(tmp_path / "d", own._replace(replicates={}))
    with pytest.raises(UserError, match="--draws 0"):
        compare([a, d])
