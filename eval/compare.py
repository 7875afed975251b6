"""Which differences between evaluated models stand, and what noise they cover.

Models are compared on the same images: the draws of `vlp eval` are the same for all, so what an
image makes hard for both cancels. Several runs of one config are one model, and then the seeds of
training are noise as well. Two levels, so two parts of the variance: of the mean difference over
draws of the images, and of the figures between the runs, over the number of runs; Satterthwaite's
degrees of freedom. A hierarchical bootstrap, which draws runs and then images, has the same parts
but for the second, which drawing from R runs makes (R - 1) / R of what it is: with three runs of
each model its 95 % intervals hold the truth in 85 of 100 simulated cases, these in 95
(`pytest -m slow tests/unit/test_compare.py`). What is tested at once is corrected by Holm.
"""

import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from eval.record import METRICS, REPLICATES
from vlp.console import show, show_table
from vlp.errors import UserError

LEVEL = 0.05
"""Share of comparisons of equal models in which any difference would be said to stand."""
MAIN = ("*/acc@1", "*/mean_recall@1", "*/mean_average_precision", "*/accuracy", "*/main", "main")


class Run(NamedTuple):
    """One evaluation on disk."""

    folder: Path
    summary: dict[str, Any]
    replicates: dict[str, Float64[Tensor, "draws"]]


@dataclass(frozen=True)
class Model:
    """Evaluations of one training config, or a single one."""

    name: str
    runs: list[Run]

    def figure(self, name: str) -> float:
        """Return the mean over the runs."""
        return sum(run.summary["metrics"][name] for run in self.runs) / len(self.runs)

    def draws(self, name: str) -> Float64[Tensor, "draws"]:
        """Return the mean over the runs for each draw of the images."""
        return torch.stack([run.replicates[name] for run in self.runs]).mean(0)

    def num_images(self, name: str) -> float:
        """Return how many images a figure is over; infinity where no evaluation says."""
        summaries = [run.summary for run in self.runs]
        counts = [
            count
            for summary in summaries
            for evaluator, count in summary.get("images", {}).items()
            if name.startswith(f"{evaluator}/")
        ]
        return min(counts, default=math.inf)

    def seed_variance(self, name: str) -> float:
        """Return the variance of the mean that the choice of the runs gives."""
        if len(self.runs) == 1:
            return 0.0
        figures = [run.summary["metrics"][name] for run in self.runs]
        return torch.tensor(figures, dtype=torch.float64).var().item() / len(figures)


class Difference(NamedTuple):
    """Second model less the first, in one figure."""

    figure: str
    first: str
    second: str
    difference: float
    error: float
    """Standard error."""
    freedom: float
    """Degrees of freedom of that error (Satterthwaite)."""
    p: float
    """Two-sided, before Holm's correction."""
    adjusted: float = math.nan
    """After it."""

    @property
    def stands(self) -> bool:
        """Whether the difference is more than noise."""
        return self.adjusted < LEVEL


def compare(folders: Sequence[Path], *, figures: Sequence[str] = ()) -> dict[str, Any]:
    """Compare evaluations of models, print a table and what it says, and return the differences.

    Raises:
        UserError: A folder is no evaluation, there is one model only, or the images differ.
    """
    models = group([read_run(folder) for folder in folders])
    if len(models) < 2:
        raise UserError(
            f"There is one model to compare: the evaluations are all of {models[0].name}. Give "
            f"folders of two, as in `vlp compare A B`."
        )
    names = _figures(models, figures)
    pairs = list(combinations(models, 2))
    found = holm([differ(a, b, name) for a, b in pairs for name in names])
    _show(found, models)
    rows = [{**one._asdict(), "stands": one.stands} for one in found]
    covers = noise_of(models)
    return {"differences": rows, "noise": covers, "level": LEVEL}


def read_run(folder: Path) -> Run:
    """Return what `vlp eval --out` wrote into a folder.

    Raises:
        UserError: It wrote nothing there, or no draws.
    """
    try:
        summary = json.loads((folder / METRICS).read_text())
        with np.load(folder / REPLICATES) as arrays:
            replicates = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # not there, or cut off
        raise UserError(
            f"{folder} holds no evaluation. Give what `vlp eval MODEL DATASET --out FOLDER` wrote."
        ) from None
    if not replicates:
        raise UserError(f"{folder} was evaluated with --draws 0. Evaluate it again without that.")
    return Run(folder, summary, replicates)


def group(runs: Sequence[Run]) -> list[Model]:
    """Return the models that evaluations are of: runs of one training config are one."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        training = run.summary.get("training") or {}
        found.setdefault(training.get("config") or str(run.folder), []).append(run)
    models = []
    for own in found.values():
        many = f" and {len(own) - 1} more" if len(own) > 1 else ""
        models.append(Model(f"{own[0].folder}{many}", own))
    return models


def differ(first: Model, second: Model, name: str) -> Difference:
    """Return the difference of two models in one figure, with its error and p-value."""
    draws = second.draws(name) - first.draws(name)
    draws = draws[~draws.isnan()]
    num_images = min(model.num_images(name) for model in (first, second))
    parts = [(draws.var().item() if len(draws) > 1 else math.nan, max(1, num_images - 1))]
    parts += [
        (model.seed_variance(name), len(model.runs) - 1)
        for model in (first, second)
        if len(model.runs) > 1
    ]
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / freedom for part, freedom in parts)
    freedom = variance**2 / spread if spread > 0 else math.inf
    difference = second.figure(name) - first.figure(name)
    error = math.sqrt(variance)
    if math.isnan(error):  # fewer than two draws have the figure: nothing is known
        return Difference(name, first.name, second.name, difference, error, freedom, 1.0)
    p = two_sided(difference / error, freedom) if error > 0 else float(difference == 0)
    # Were the models equal, either could be either on each image: of n images a difference as large
    # as can be has a probability of 2 in 2^n, however equal its draws are.
    p = min(1.0, max(p, 2.0 ** (1 - num_images)))
    return Difference(name, first.name, second.name, difference, error, freedom, p)


def holm(found: Sequence[Difference]) -> list[Difference]:
    """Return differences with p-values that hold for all of them at once (Holm 1979)."""
    order = sorted(range(len(found)), key=lambda place: found[place].p)
    adjusted, worst = [1.0] * len(found), 0.0
    for rank, place in enumerate(order):
        worst = max(worst, min(1.0, (len(found) - rank) * found[place].p))
        adjusted[place] = worst
    return [one._replace(adjusted=p) for one, p in zip(found, adjusted, strict=True)]


def two_sided(t: float, freedom: float) -> float:
    """Return how likely Student's t is as far from 0 as this, by its density over an angle.

    With t = sqrt(freedom) * tan(a), the density of a is cos(a) ** (freedom - 1).
    """
    if freedom > 1000:
        return math.erfc(abs(t) / math.sqrt(2))
    edge = math.atan(abs(t) / math.sqrt(freedom))
    whole = torch.linspace(0, math.pi / 2, 20_001, dtype=torch.float64)
    tail = torch.linspace(edge, math.pi / 2, 20_001, dtype=torch.float64)
    areas = [
        torch.trapezoid(angles.cos().clamp(min=0) ** (freedom - 1), angles)
        for angles in (tail, whole)
    ]
    return (areas[0] / areas[1]).item()


def noise_of(models: Sequence[Model]) -> str:
    """Return in a sentence what noise the differences were held against."""
    counts = [len(model.runs) for model in models]
    if max(counts) == 1:
        return (
            "They cover the choice of the images; not the seed of training, of which there is one "
            "run for each model."
        )
    runs = " and ".join(map(str, counts))
    if min(counts) == 1:
        return (
            f"They cover the choice of the images and, of the models with several runs ({runs}), "
            f"the seed of training."
        )
    return f"They cover the choice of the images and the seed of training ({runs} runs)."


def _figures(models: Sequence[Model], wanted: Sequence[str]) -> list[str]:
    """Return the figures that all evaluations have and that are asked for."""
    runs = [run for model in models for run in model.runs]
    for run in runs[1:]:
        for field in ("sample_ids", "draws", "seed"):
            if run.summary[field] != runs[0].summary[field]:
                raise UserError(
                    f"{runs[0].folder} and {run.folder} are not of the same images and draws: "
                    f"{field} is {runs[0].summary[field]} and {run.summary[field]}. Evaluate both "
                    f"on one dataset."
                )
    common = [name for name in runs[0].replicates if all(name in run.replicates for run in runs)]
    for patterns in (wanted,) if wanted else (MAIN, ("*",)):
        found = [name for name in common if any(fnmatch(name, p) for p in patterns)]
        if found:
            return found
    raise UserError(f"No figure is called {' or '.join(wanted)}. There are: {', '.join(common)}.")


def _show(found: Sequence[Difference], models: Sequence[Model]) -> None:
    show_table(
        ("figure", "first", "second", "second - first", "error", "p", "p (Holm)", "stands"),
        [
            (
                one.figure,
                one.first,
                one.second,
                f"{one.difference:+.4f}",
                f"{one.error:.4f}",
                f"{one.p:.2g}",
                f"{one.adjusted:.2g}",
                "yes" if one.stands else "no",
            )
            for one in found
        ],
    )
    standing = [one for one in found if one.stands]
    show(
        f"{len(standing)} of {len(found)} differences stand at {LEVEL:.0%}, all tested at once. "
        f"{noise_of(models)}"
    )
