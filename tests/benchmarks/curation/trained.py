"""What training makes of a filtered set: against all of it, and as many samples of it by chance."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from curation.planted import drawn, spread
from curation.tables import Table, curated, note, vlp

from data_pipelines import toy
from data_pipelines.shards import open_shards, write_shards
from vlp.output import write_json

if TYPE_CHECKING:
    from filters import Sizes

SEEDS = (11, 12, 13)
"""Of the draws and of the runs; no draw is one that a threshold was chosen on."""
RULES = (
    "decodable",
    "image_side(min=32)",
    "caption_words(min=3)",
    "exact_duplicate(by='pair')",
)
SCORE = "clip_score(model={!r}, top=0.85)"
NUM_SCENES, DRAWINGS = 400, 4
FIGURES = {
    "zero-shot accuracy": "zero_shot/acc@1",
    "recall@1 to text": "retrieval/image_to_text/recall@1",
    "recall@1 to image": "retrieval/text_to_image/recall@1",
}


def trained(folder: Path, model: Path, sizes: "Sizes") -> list[Table]:
    """Return how good models are that see as many samples of each set, drawn anew for each seed."""
    held_out(folder)
    figures: dict[str, list[dict[str, float]]] = {}
    kept: dict[str, list[int]] = {}
    for seed in SEEDS:
        for name, shards in subsets(folder, model, sizes.trained, seed).items():
            kept.setdefault(name, []).append(len(open_shards(shards)))
            found = figures_of(folder, shards, sizes.seen, seed)
            figures.setdefault(name, []).append(found)
            note(f"{name}, seed {seed}: {found}")
    rows = [
        (
            name,
            round(sum(kept[name]) / len(SEEDS)),
            *(spread([one[figure] for one in own]) for figure in FIGURES.values()),
        )
        for name, own in figures.items()
    ]
    title = (
        f"The recipe toy on {sizes.seen:,} samples seen of each set; mean and range of "
        f"{len(SEEDS)} seeds, evaluated on held-out scenes and shapes."
    )
    return [Table(title, ("set", "pairs", *FIGURES), rows)]


def subsets(folder: Path, model: Path, size: int, seed: int) -> dict[str, Path]:
    """Return shards of a raw draw, of what filters keep of it, and of as many by chance."""
    raw = drawn(folder / f"train{seed}" / "raw", seed, size).raw
    found = {"raw": raw}
    for name, rules in {
        "filtered without a model": RULES,
        "filtered": (*RULES, SCORE.format(str(model))),
    }.items():
        found[name] = raw.with_name(name.replace(" ", "_"))
        curated(raw, found[name], rules, seed=seed)
    number = len(open_shards(found["filtered"]))
    found["by chance"] = raw.with_name("by_chance")
    shutil.rmtree(found["by chance"], ignore_errors=True)
    write_shards(by_chance(raw, number, seed), found["by chance"], samples_per_shard=1000)
    return found


def by_chance(raw: Path, number: int, seed: int) -> Iterator:
    """Yield samples of a set, drawn without looking at them."""
    shards = open_shards(raw)
    chosen = set(np.random.default_rng([seed, 7]).permutation(len(shards))[:number].tolist())
    return (sample for place, sample in enumerate(shards) if place in chosen)


def figures_of(folder: Path, shards: Path, seen: int, seed: int) -> dict[str, float]:
    """Train on shards and return what the model is worth."""
    run = shards.parent / "run"
    shutil.rmtree(run, ignore_errors=True)
    options = ("--seed", str(seed), "--samples", str(seen), "--data.max-bad", "0.1")
    vlp("train", "toy", "--data.shards", shards, "--out", run, *options)
    task = f"zero_shot(classes={str(folder / 'classes.json')!r})"
    found = evaluated(run, folder / "scenes", "retrieval") | evaluated(run, folder / "shapes", task)
    return {figure: found[figure] for figure in FIGURES.values()}


def evaluated(run: Path, shards: Path, *tasks: str) -> dict[str, float]:
    return vlp("eval", run, shards, "--tasks", *tasks)["metrics"]


def held_out(folder: Path) -> Sequence[Path]:
    """Draw what the models are evaluated on, once; no seed of training shows it."""
    scenes, shapes = folder / "scenes", folder / "shapes"
    if not scenes.is_dir():
        write_shards(toy.draw_evaluation(NUM_SCENES, 0), scenes, samples_per_shard=1000)
    if not shapes.is_dir():
        write_shards(toy.draw_single_shapes(DRAWINGS, 0), shapes, samples_per_shard=1000)
    write_json(folder / "classes.json", toy.zero_shot_classes())
    return scenes, shapes
