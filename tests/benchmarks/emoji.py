"""Train the recipe `emoji` and score it on a style and on concepts that it never saw.

    python tests/benchmarks/emoji.py DATA OUT --seeds 0 1 2
    python tests/benchmarks/emoji.py DATA OUT --select --options --optimizer.learning-rate 1e-3
    python tests/benchmarks/emoji.py DATA OUT --kill-every 90 --steps 200

DATA holds train/, test_style/, test_concepts/ and classes.json (see docs/emoji.md). Options
after `--options` go to `vlp train`. `--select` is how hyper-parameters are chosen, without the test
shards: a tenth of the train concepts (by hash) and one vendor are held apart, and the run on the
rest is scored on the tenth (unseen concepts), on the vendor's drawings (unseen style) and on the
same drawings redrawn in the manner of OpenMoji: flat fills of its palette, dark outlines (unseen
outlines). The redrawing shares no code with the augmentation, but both draw dark lines at edges.
`--kill-every` scores nothing: it trains once as it is and once with SIGKILL every so many seconds,
and says what differs.
"""

import argparse
import io
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from kills import compare_with_kills
from PIL import Image, ImageChops, ImageFilter

from data_pipelines.plan import hash63
from data_pipelines.shards import open_shards, write_shards
from vlp.cli import run
from vlp.console import show_table
from vlp.image import decode
from vlp.types import Sample

HELD_VENDOR = "twitter"
PALETTE = bytes.fromhex(
    "92d3f561b2e41e50a0ea5a47d22f27781e32b1cc335c9e31186648fcea2bf1b31cf4aa41e27022b399c88967aa"
    "61418bffa7c0e67a94a579396a462fd0cfce9b9b9a3f3f3fffffff000000fadcbcdebb903e2b1c"
)
"""OpenMoji's colours as its style guide gives them, and three of its skin colours."""
REDRAWN_SIDE = 144
"""Redrawings are made at twice their size in pixels, so that a line of 2 pixels is smooth."""
AS_TRAINED = "('{}',)"
"""Captions are names without a template, so class names are too."""
SHOWN = {
    "names/acc@1": "image to name",
    "subgroup/acc@1": "image to subgroup",
    "retrieval/image_to_text/recall@1": "image to caption recall@1",
    "retrieval/text_to_image/recall@1": "caption to image recall@1",
}


def main() -> None:
    options = parse()
    if not (options.data and options.out):
        print("Skipped: the emoji set is not part of this project; see docs/emoji.md.")
        return
    if options.kill_every:
        compare_with_kills(killed_command(options), options.out, options.kill_every)
    sets = selection_sets(options) if options.select else shards_and_classes(options.data)
    figures: dict[str, list[float]] = {}
    for seed in options.seeds:
        for name, value in one_run(options, seed, sets).items():
            figures.setdefault(name, []).append(value)
    rows = []
    for name, values in figures.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        each = " ".join(f"{value:.4g}" for value in values)
        rows.append((name, f"{statistics.mean(values):.4g}", f"{spread:.2g}", each))
    show_table(["figure", "mean", "deviation", "seeds"], rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--select", action="store_true")
    parser.add_argument("--kill-every", type=float, nargs="?", const=90.0, metavar="SECONDS")
    parser.add_argument("--steps", type=int, help="length of the runs of --kill-every")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[])
    return parser.parse_args()


def killed_command(options: argparse.Namespace) -> list[str]:
    """Return the words of the run that is killed: it must save more often than that."""
    argv = ["train", "emoji", "--data.shards", str(options.data / "train")]
    argv += ["--seed", str(options.seeds[0]), "--save-every", "0.25 minutes"]
    length = ["--steps", str(options.steps)] if options.steps else []
    return [*argv, *length, *options.options]


def shards_and_classes(data: Path) -> dict[str, tuple[str, str]]:
    """Return the shards to train on and to score, each with the class names to score on."""
    return {
        "train": (str(data / "train"), ""),
        "test_style": (str(data / "test_style"), "concept.train"),
        "test_concepts": (str(data / "test_concepts"), "concept.test_concepts"),
    }


def selection_sets(options: argparse.Namespace) -> dict[str, tuple[str, str]]:
    """Split the train shards; write each part and its class names under OUT/select."""
    folder = options.out / "select"
    parts = {"train": [], "style": [], "outlines": [], "concepts": []}
    names: dict[str, dict[int, str]] = {part: {} for part in parts}
    for sample in open_shards(options.data / "train"):
        concept = sample.metadata["concept_id"]
        is_held = hash63(str(concept)) % 10 == 0
        is_style = sample.metadata["vendor"] == HELD_VENDOR
        part = "concepts" if is_held else "style" if is_style else "train"
        parts[part].append(sample)
        names[part][concept] = sample.text
        if part == "style":
            parts["outlines"].append(redrawn(sample))
            names["outlines"][concept] = sample.text
    found = {}
    for part, samples in parts.items():
        write_shards(samples, folder / part)
        classes = {
            "templates": json.loads((options.data / "classes.json").read_text())["templates"],
            "classnames": list(names[part].values()),
            "ids": list(names[part]),
            "label_key": "concept_id",
        }
        (folder / f"{part}.json").write_text(json.dumps(classes))
        found[part] = (str(folder / part), str(folder / f"{part}.json"))
    return found


def redrawn(sample: Sample) -> Sample:
    """Return the sample drawn in the manner of OpenMoji, bent and shrunk a little."""
    rng = np.random.default_rng(hash63(sample.key))
    image = decode(sample.image).resize((REDRAWN_SIDE, REDRAWN_SIDE), Image.Resampling.BICUBIC)
    image = image.filter(ImageFilter.MedianFilter(5))
    regions = image.quantize(int(rng.integers(5, 9)), dither=Image.Dither.NONE)
    regions = regions.convert("RGB").filter(ImageFilter.ModeFilter(5))
    colours = Image.new("P", (1, 1))
    colours.putpalette(PALETTE)
    flat = regions.quantize(palette=colours, dither=Image.Dither.NONE).convert("RGB")
    change = ImageChops.difference(
        flat.filter(ImageFilter.MaxFilter(3)), flat.filter(ImageFilter.MinFilter(3))
    )
    line = change.convert("L").point([0] * 11 + [255] * 245)
    drawing = Image.composite(Image.new("RGB", flat.size), flat, line)
    data = io.BytesIO()
    bent(drawing, rng).save(data, "PNG")
    return replace(sample, image=data.getvalue())


def bent(drawing: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the drawing at half its size, turned, slanted, stretched and shrunk a little."""
    angle, slant = math.radians(rng.uniform(-6, 6)), rng.uniform(-0.08, 0.08)
    zoom, stretch = rng.uniform(0.78, 0.95), math.exp(rng.uniform(-0.08, 0.08))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ [[1.0, slant], [0.0, 1.0]] @ np.diag([1 / stretch, stretch]) / zoom
    centre = np.array(drawing.size) / 2
    offset = centre - matrix @ (centre + rng.uniform(-5, 5, 2))
    data = tuple(np.column_stack([matrix, offset]).ravel().tolist())
    drawing = drawing.transform(
        drawing.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor="white"
    )
    return drawing.resize((drawing.width // 2, drawing.height // 2), Image.Resampling.LANCZOS)


def one_run(options: argparse.Namespace, seed: int, sets: dict) -> dict[str, float]:
    """Train with one seed; return the seconds and the figures of every set but the first."""
    train, *scored = sets
    out = options.out / f"seed_{seed}"
    argv = ["train", "emoji", "--data.shards", sets[train][0], "--seed", str(seed)]
    start = time.perf_counter()
    run([*argv, "--out", str(out), "--overwrite", *options.options])
    figures = {"train minutes": (time.perf_counter() - start) / 60}
    for name in scored:
        shards, classes = sets[name]
        whole = str(options.data / "classes.json")
        of_names = f"classes={whole!r}, part={classes!r}"
        if options.select:
            of_names = f"classes={classes!r}"
        of_names += ", templates=('{}',)"  # as trained: captions are names, without a template
        tasks = [f"zero_shot({of_names}, name='names')"]
        tasks.append(
            f"zero_shot(classes={whole!r}, part='subgroup', templates=('{{}}',), name='subgroup')"
        )
        result = run(["eval", str(out), shards, "--quiet", "--tasks", "retrieval", *tasks])
        for key, label in SHOWN.items():
            figures[f"{name}: {label}"] = result["metrics"][key]
    return figures


if __name__ == "__main__":
    main()
