"""What training makes of a filtered set: against all of it, and as many samples of it by chance."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
SHARES = {**toy.DEFECTS, "swapped_caption": 0.3, "boilerplate_caption": 0.15}
"""As on the web, more pairs are bad than good; DataComp's best filters keep 30 %."""
RULES = (
    "decodable",
    "image_side(min=32)",
    "caption_words(min=3)",
    "exact_duplicate(by='pair')",
    "clip_score(model={model!r}, top=0.5, of='left')",
)
NUM_SCENES, DRAWINGS = 400, 4
FIGURES = {
    "zero-shot accuracy": "zero_shot/acc@1",
    "recall@1 to text": "retrieval/image_to_text/recall@1",
    "recall@1 to image": "retrieval/text_to_image/recall@1",
}


def trained(folder: Path, model: Path, sizes: "Sizes") -> list[Table]:
    """Return how good models are that see as many samples of each set, drawn anew for each seed.

    What a seed gave is kept, so a run that was stopped goes on with the next.
    """
    held_out(folder)
    rules = [rule.format(model=str(model)) for rule in RULES]
    told = {"pairs": sizes.trained, "seen": sizes.seen, "shares": SHARES, "rules": rules}
    of_seeds = [of_seed(folder / f"train{seed}", seed, told) for seed in SEEDS]
    rows = [
        (
            name,
            round(sum(found[name]["pairs"] for found in of_seeds) / len(SEEDS)),
            *(spread([found[name][figure] for found in of_seeds]) for figure in FIGURES.values()),
        )
        for name in of_seeds[0]
    ]
    title = (
        f"The recipe toy on {sizes.seen:,} samples seen of each set; mean and range of "
        f"{len(SEEDS)} seeds, evaluated on held-out scenes and shapes."
    )
    return [Table(title, ("set", "pairs", *FIGURES), rows)]


def of_seed(folder: Path, seed: int, told: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the figures of a model of each set, by the set's name."""
    path = folder / "figures.json"
    if path.exists() and (known := json.loads(path.read_text()))["told"] == told:
        return known["figures"]
    figures = {}
    for name, shards in subsets(folder, seed, told).items():
        figures[name] = {"pairs": len(open_shards(shards)), **figures_of(shards, told, seed)}
        note(f"{name}, seed {seed}: {figures[name]}")
    write_json(path, {"told": told, "figures": figures})
    return figures


def subsets(folder: Path, seed: int, told: dict[str, Any]) -> dict[str, Path]:
    """Return shards of a raw draw, of what filters keep of it, and of as many by chance."""
    shutil.rmtree(folder, ignore_errors=True)
    raw = drawn(folder / "raw", seed, told["pairs"], shares=told["shares"]).raw
    found = {"raw": raw, "filtered": folder / "filtered", "by chance": folder / "by_chance"}
    curated(raw, found["filtered"], told["rules"], seed=seed)
    number = len(open_shards(found["filtered"]))
    write_shards(by_chance(raw, number, seed), found["by chance"], samples_per_shard=1000)
    return found


def by_chance(raw: Path, number: int, seed: int) -> Iterator:
    """Yield samples of a set, drawn without looking at them."""
    shards = open_shards(raw)
    chosen = set(np.random.default_rng([seed, 7]).permutation(len(shards))[:number].tolist())
    return (sample for place, sample in enumerate(shards) if place in chosen)


def figures_of(shards: Path, told: dict[str, Any], seed: int) -> dict[str, float]:
    """Train on shards and return what the model is worth."""
    run, sets = shards.parent / "run", shards.parents[1]
    shutil.rmtree(run, ignore_errors=True)
    options = ("--seed", str(seed), "--samples", str(told["seen"]), "--data.max-bad", "0.1")
    vlp("train", "toy", "--data.shards", shards, "--out", run, *options)
    task = f"zero_shot(classes={str(sets / 'classes.json')!r})"
    found = evaluated(run, sets / "scenes", "retrieval") | evaluated(run, sets / "shapes", task)
    return {figure: found[figure] for figure in FIGURES.values()}


def evaluated(run: Path, shards: Path, *tasks: str) -> dict[str, float]:
    return vlp("eval", run, shards, "--tasks", *tasks)["metrics"]


def held_out(folder: Path) -> None:
    """Draw what the models are evaluated on, once; no seed of training shows it."""
    scenes, shapes = folder / "scenes", folder / "shapes"
    if not scenes.is_dir():
        write_shards(toy.draw_evaluation(NUM_SCENES, 0), scenes, samples_per_shard=1000)
    if not shapes.is_dir():
        write_shards(toy.draw_single_shapes(DRAWINGS, 0), shapes, samples_per_shard=1000)
    write_json(folder / "classes.json", toy.zero_shot_classes())
