"""How well filters find the defects that are planted into the toy world.

What filters see has no marks. Thresholds are chosen on four draws, where the mean F1 is highest,
and the figures are of three others.
"""

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from curation.tables import Table, fates, note
from drawn.photographs import photograph
from PIL import ImageChops

from data_pipelines import toy
from data_pipelines.drawing import OUTLINES, SIDE, jpeg
from data_pipelines.shards import write_shards
from vlp.image import decode
from vlp.types import Sample

CHOSEN_ON, SEEDS = (0, 100, 101, 102), (1, 2, 3)
SHARES = toy.DEFECTS
FEW = {**SHARES, "text_only_image": 0.1}
"""Of a smaller draw, since text is read in tenths of a second."""
CLEAN_SEED = 1000
"""The checkpoint learns from another draw, without defects."""
NUM_PHOTOGRAPHS, NUM_DRAWINGS = 200, 600
COPIED = 10
"""Of so many of these one has a copy."""
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
    thresholds: Sequence[float | str] | None = None
    column: str | None = None
    """Column whose numbers the thresholds are chosen between, if they are not given."""
    world: str = "toy"


def planted(folder: Path, model: Path, size: int) -> list[Table]:
    """Return precision and recall of each filter for its defect, and of clip_score."""
    seeds = (*CHOSEN_ON, *SEEDS)
    worlds = {seed: drawn(folder / f"raw{seed}", seed, size) for seed in seeds}
    few = {seed: drawn(folder / f"few{seed}", seed, size // 10, shares=FEW) for seed in seeds}
    photographs = {seed: of_photographs(folder / f"photographs{seed}", seed) for seed in seeds}
    moved = {seed: of_drawings(folder / f"moved{seed}", seed) for seed in seeds}
    drawings = {"toy": worlds, "toy, few": few, "photographs": photographs, "toy, moved": moved}
    rows = []
    for trial in trials(folder, model):
        own = drawings[trial.world]
        rule = trial.rule.format(chosen(trial, [own[seed] for seed in CHOSEN_ON]))
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
        f"Planted defects, draws of {size:,} pairs, thresholds chosen on seeds "
        f"{', '.join(map(str, CHOSEN_ON))}; mean, and range, of {', '.join(map(str, SEEDS))}."
    )
    columns = ("defect", "world", "rule", "planted", "precision", "recall")
    return [Table(title, columns, rows), swapped(model, worlds)]


def drawn(raw: Path, seed: int, size: int, shares: Mapping[str, float] = SHARES) -> World:
    """Draw a world and write it as shards."""
    samples = without_chance(toy.draw_training(size, seed, shares=shares))
    if not raw.is_dir():
        write_shards(iter(samples), raw, samples_per_shard=500)
    return World(raw, {one.key: one for one in samples})


def without_chance(samples: Iterable[Sample]) -> list[Sample]:
    """Return samples without scenes that chance drew twice, less than 2 pixels apart.

    Such two are one picture to anyone, and nobody planted them.
    """
    places: dict[str, list[np.ndarray]] = {}
    found = []
    for one in samples:
        shapes = one.metadata["shapes"]
        place = np.array([(shape["x"], shape["y"]) for shape in shapes])
        before = places.setdefault(_description(one), [])
        apart = [abs(place - other).max() for other in before if len(place)]
        if not any(0 < far < 2 / SIDE for far in apart):
            before.append(place)
            found.append(one)
    return found


def of_photographs(raw: Path, seed: int) -> World:
    """Write photograph-like pictures, and copies, smaller and compressed again."""

    def smaller(data: bytes) -> bytes:
        small = decode(data)
        small.thumbnail((320, 320))
        return jpeg(small, quality=60)

    originals = (
        Sample(
            f"{number:04d}",
            photograph(1000 * seed + number),
            f"photograph {number}",
            {toy.MARK: None, "shapes": [number]},
        )
        for number in range(NUM_PHOTOGRAPHS)
    )
    return with_copies(raw, originals, smaller)


def of_drawings(raw: Path, seed: int) -> World:
    """Write drawings, and copies, moved by 2 of 64 pixels to the right and down."""

    def moved(data: bytes) -> bytes:
        return jpeg(ImageChops.offset(decode(data), 2, 2), quality=80)

    return with_copies(raw, toy.draw_training(NUM_DRAWINGS, seed, shares={}), moved)


def with_copies(raw: Path, originals: Iterator[Sample], copied: Callable[[bytes], bytes]) -> World:
    """Write samples, and copies of a tenth of them."""
    samples = {}
    for number, one in enumerate(originals):
        samples[one.key] = one
        if number % COPIED == 0:
            told = {**one.metadata, toy.MARK: "near_duplicate"}
            copy = Sample(f"{one.key}b", copied(one.image), one.text, told)
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
    pdq = "pdq_duplicate({}, quality=0)"
    colours = (-1, 0.9, 0.93, 0.95, 0.96, 0.97, 0.98)
    alike = [f"radius={radius}, colour={own}" for radius in range(24, 65, 8) for own in colours]
    epsilons = np.geomspace(1e-4, 0.3, 24).round(5).tolist()
    return [
        Trial("broken_file", (), "decodable"),
        Trial("tiny_image", ("decodable",), "image_side(min={})", column="image_side"),
        Trial("exact_duplicate", WHOLE, "exact_duplicate(by='pair')"),
        Trial("boilerplate_caption", (), f"metaclip_balance(entries={str(shapes)!r}, t=1000000)"),
        Trial("boilerplate_caption", (), "caption_words(min={})", column="caption_words"),
        Trial("near_duplicate", exact, pdq, alike),
        Trial("near_duplicate", exact, semantic, epsilons),
        Trial("semantic_duplicate", exact, semantic, epsilons),
        Trial("near_duplicate", (), pdq, alike, world="toy, moved"),
        Trial("near_duplicate", (), "pdq_duplicate", world="photographs"),
        Trial("text_only_image", WHOLE, "text_spotting", world="toy, few"),
    ]


def chosen(trial: Trial, worlds: Sequence[World]) -> float | str:
    """Return the threshold of the highest mean F1; of equal ones the one in the middle."""
    if trial.thresholds is None and trial.column is None:
        return ""
    thresholds = trial.thresholds or between(trial, worlds)
    scores = {
        threshold: statistics.mean(
            measured(trial, trial.rule.format(threshold), world).f1 for world in worlds
        )
        for threshold in thresholds
    }
    best = max(scores.values())
    found = [threshold for threshold, score in scores.items() if score == best]
    return found[(len(found) - 1) // 2]


def between(trial: Trial, worlds: Sequence[World]) -> list[float]:
    """Return thresholds between the numbers that a filter says."""
    column = trial.column or ""
    numbers = [
        number
        for world in worlds
        for number in fates(world.raw, scores_of(world), [*trial.before, column])
        .values(column)
        .values()
        if number is not None
    ]
    values = np.unique(numbers)
    middles = (values[1:] + values[:-1]) / 2
    middles = np.ceil(middles).astype(int) if (values == values.round()).all() else middles.round(4)
    return middles[:: 1 + len(middles) // 40].tolist()


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
    """Return what the picture shows, places included; a picture of text shows that."""
    return json.dumps(one.metadata["shapes"]) if one.metadata["shapes"] else one.text


def _description(one: Sample) -> str:
    """Return what can be said of the picture."""
    said = [
        [shape[name] for name in ("shape", "colour", "size", "texture")]
        for shape in one.metadata["shapes"]
    ]
    return json.dumps([one.metadata["layout"], said]) if said else one.text


SAME: dict[str, Callable[[Sample], str]] = {
    "exact_duplicate": lambda one: f"{one.image!r} {one.text}",
    "near_duplicate": _scene,
    "semantic_duplicate": _description,
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
