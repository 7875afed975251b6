"""How well filters find the defects that are planted into the toy world.

What filters see has no marks. Thresholds are chosen on seed 0, where F1 is highest, and the figures
are of other seeds.
"""

import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from curation.tables import Table, fates, note
from drawn.photographs import photograph

from data_pipelines import toy
from data_pipelines.drawing import OUTLINES, jpeg
from data_pipelines.shards import write_shards
from vlp.image import decode
from vlp.types import Sample

CHOSEN_ON, SEEDS = 0, (1, 2, 3)
SHARES = toy.DEFECTS
FEW = {**SHARES, "text_only_image": 0.1}
"""Of a smaller draw, since text is read in tenths of a second."""
CLEAN_SEED = 1000
"""The checkpoint learns from another draw, without defects."""
NUM_PHOTOGRAPHS = 200
WHOLE = ("decodable", "image_side(min=32)")
"""Rules that stand before those that need a picture."""


class World(NamedTuple):
    """A draw of the toy world with planted defects."""

    raw: Path
    samples: dict[str, Sample]

    def of(self, defect: str) -> set[str]:
        """Return the keys of the samples with a defect."""
        return {key for key, one in self.samples.items() if one.metadata[toy.MARK] == defect}


class Score(NamedTuple):
    """How well one filter does on one draw."""

    precision: float
    recall: float
    planted: int

    @property
    def f1(self) -> float:
        """Their harmonic mean."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


class Trial(NamedTuple):
    """A filter for a defect."""

    defect: str
    before: tuple[str, ...]
    """Rules whose drops it does not see."""
    rule: str
    """With a blank, ``{}``, for the threshold."""
    thresholds: Sequence[float] | None = None
    column: str | None = None
    """Column whose numbers the thresholds are chosen between, if they are not given."""
    world: str = "toy"


def planted(folder: Path, model: Path, size: int) -> list[Table]:
    """Return precision and recall of each filter for its defect, and of clip_score."""
    seeds = (CHOSEN_ON, *SEEDS)
    worlds = {seed: drawn(folder / f"raw{seed}", seed, size) for seed in seeds}
    few = {seed: drawn(folder / f"few{seed}", seed, size // 5, shares=FEW) for seed in seeds}
    photographs = {seed: of_photographs(folder / f"photographs{seed}", seed) for seed in seeds}
    drawings = {"toy": worlds, "toy, few": few, "photographs": photographs}
    rows = []
    for trial in trials(folder, model):
        own = drawings[trial.world]
        rule = trial.rule.format(chosen(trial, own[CHOSEN_ON]))
        scores = [measured(trial, rule, own[seed]) for seed in SEEDS]
        note(f"{trial.defect} by {rule}: {scores}")
        rows.append(
            (
                trial.defect,
                trial.world,
                rule.replace(f"{folder}/", ""),
                sum(score.planted for score in scores),
                spread([score.precision for score in scores]),
                spread([score.recall for score in scores]),
            )
        )
    title = (
        f"Planted defects, draws of {size:,} pairs, thresholds chosen on seed {CHOSEN_ON}; mean, "
        f"and range, of seeds {', '.join(map(str, SEEDS))}."
    )
    columns = ("defect", "world", "rule", "planted", "precision", "recall")
    return [Table(title, columns, rows), swapped(model, worlds)]


def drawn(raw: Path, seed: int, size: int, shares: Mapping[str, float] = SHARES) -> World:
    """Draw a world and write it as shards."""
    samples = list(toy.draw_training(size, seed, shares=shares))
    if not raw.is_dir():
        write_shards(iter(samples), raw, samples_per_shard=500)
    return World(raw, {one.key: one for one in samples})


def of_photographs(raw: Path, seed: int) -> World:
    """Write photograph-like pictures, and of a tenth a copy, smaller and compressed again."""
    samples = {}
    for number in range(NUM_PHOTOGRAPHS):
        data = photograph(1000 * seed + number)
        metadata = {toy.MARK: None, "shapes": [number]}
        samples[f"{number:04d}"] = Sample(f"{number:04d}", data, f"photograph {number}", metadata)
        if number % 10 == 0:
            small = decode(data)
            small.thumbnail((320, 320))
            copy = Sample(f"{number:04d}b", jpeg(small, quality=60), "copy", dict(metadata))
            copy.metadata[toy.MARK] = "near_duplicate"
            samples[copy.key] = copy
    if not raw.is_dir():
        write_shards(iter(samples.values()), raw, samples_per_shard=500)
    return World(raw, samples)


def trials(folder: Path, model: Path) -> list[Trial]:
    """Return the filters that are tried."""
    shapes = folder / "shapes.txt"
    shapes.write_text("\n".join(OUTLINES))
    semantic = f"semantic_duplicate(model={str(model)!r}, epsilon={{}})"
    exact = (*WHOLE, "exact_duplicate(by='pair')")
    return [
        Trial("broken_file", (), "decodable"),
        Trial("tiny_image", ("decodable",), "image_side(min={})", column="image_side"),
        Trial("exact_duplicate", WHOLE, "exact_duplicate(by='pair')"),
        Trial("boilerplate_caption", (), f"metaclip_balance(entries={str(shapes)!r}, t=1000000)"),
        Trial("boilerplate_caption", (), "caption_words(min={})", column="caption_words"),
        Trial("near_duplicate", exact, "pdq_duplicate(radius={}, quality=0)", range(0, 65, 8)),
        Trial("near_duplicate", exact, semantic, np.geomspace(1e-3, 0.3, 12).round(4).tolist()),
        Trial("near_duplicate", (), "pdq_duplicate(radius={})", (31,), world="photographs"),
        Trial("text_only_image", WHOLE, "text_spotting", world="toy, few"),
    ]


def chosen(trial: Trial, world: World) -> float | str:
    """Return the threshold of the highest F1."""
    if trial.thresholds is None and trial.column is None:
        return ""
    thresholds = trial.thresholds
    if thresholds is None:
        column = trial.column or ""
        numbers = fates(world.raw, scores_of(world), [*trial.before, column]).values(column)
        values = np.unique([number for number in numbers.values() if number is not None])
        is_whole = bool((values == values.round()).all())
        middles = values[1:] if is_whole else ((values[1:] + values[:-1]) / 2).round(4)
        thresholds = middles[:: 1 + len(middles) // 40].tolist()
    scores = {t: measured(trial, trial.rule.format(t), world) for t in thresholds}
    best = max(score.f1 for score in scores.values())
    return statistics.median_low([t for t, score in scores.items() if score.f1 == best])


def measured(trial: Trial, rule: str, world: World) -> Score:
    """Return how well a rule finds a defect among what the rules before it leave."""
    found = fates(world.raw, scores_of(world), [*trial.before, rule]).first
    own = len(trial.before)
    came = {key for key, first in found.items() if first in (-1, own)}
    dropped = {key for key, first in found.items() if first == own}
    if trial.defect.endswith("duplicate"):
        return of_repeats(world, came, dropped, SAME[trial.defect])
    bad = world.of(trial.defect) & came
    hits = len(bad & dropped)
    return Score(hits / max(1, len(dropped)), hits / max(1, len(bad)), len(bad))


def of_repeats(
    world: World, came: set[str], dropped: set[str], same: Callable[[Sample], str]
) -> Score:
    """Return how well repeats are found: of equal samples, any one may stay."""
    sizes = Counter(same(world.samples[key]) for key in came)
    gone = Counter(same(world.samples[key]) for key in dropped)
    hits = sum(min(count, sizes[one] - 1) for one, count in gone.items())
    repeats = sum(size - 1 for size in sizes.values())
    return Score(hits / max(1, len(dropped)), hits / max(1, repeats), repeats)


def _scene(one: Sample) -> str:
    """Return what the picture shows, places included; a picture of text shows nothing else."""
    shapes = one.metadata["shapes"]
    return json.dumps(shapes) if shapes else f"text {one.key}"


SAME: dict[str, Callable[[Sample], str]] = {
    "exact_duplicate": lambda one: f"{one.image!r} {one.text}",
    "near_duplicate": _scene,
}


def scores_of(world: World) -> Path:
    """Return where the scores of a draw are kept, so that no filter scores it twice."""
    return world.raw.with_name(f"scores_{world.raw.name}")


def swapped(model: Path, worlds: Mapping[int, World]) -> Table:
    """Return how well the score by a model tells swapped captions from those that fit."""
    rule, rows = f"clip_score(model={str(model)!r}, top=0.3)", []
    for seed in SEEDS:
        found = fates(worlds[seed].raw, scores_of(worlds[seed]), [rule])
        scores = found.values(rule.replace(", top=0.3", ""))
        kept = {key for key, first in found.first.items() if first < 0}
        bad = {key for key in worlds[seed].of("swapped_caption") if scores[key] is not None}
        good = {
            key
            for key, one in worlds[seed].samples.items()
            if one.metadata[toy.MARK] is None and scores[key] is not None
        }
        area = auc([scores[key] for key in good], [scores[key] for key in bad])
        dropped = {key for key in scores if scores[key] is not None} - kept
        recall, precision = len(bad & dropped) / len(bad), len(bad & dropped) / len(dropped)
        worst = sorted(good | bad, key=lambda key: scores[key])[: len(bad)]
        at_share = len(bad.intersection(worst)) / len(bad)
        rows.append((seed, len(bad), len(good), area, recall, precision, at_share))
        note(f"swapped captions, seed {seed}: {rows[-1]}")
    title = (
        "Swapped captions by clip_score, a checkpoint trained on a clean draw of another seed; "
        "recall and precision of what top=0.3 drops, and of as many of the lowest as are bad."
    )
    columns = ("seed", "swapped", "clean", "AUC", "recall", "precision", "both at their number")
    return Table(title, columns, rows)


def auc(above: Sequence[float], below: Sequence[float]) -> float:
    """Return how often one of the first is larger than one of the second; ties count half."""
    one, other = np.array(above)[:, None], np.array(below)[None, :]
    return float((one > other).mean() + (one == other).mean() / 2)


def spread(values: Sequence[Any]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"
