"""The tour: draws the toy world, then runs the public commands on it as a user would type them."""

import json
import os
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlp.console import say, show, show_table
from vlp.errors import UserError
from vlp.output import check_output, remove_output, write_json, write_record

if TYPE_CHECKING:  # loads torch, and `vlp --help` must not
    from vlp.sample import Sample

MIN_SAMPLES = 200
"""Fewer would not fill a batch of the recipe ``toy`` once the filters are through."""
NUM_SCENES = 600
NUM_PAIRS = 180
NUM_CLASSES = 64
DRAWINGS_PER_CLASS = 4
KEEP = ("caption_words(min=3)", "image_side(min=32)", "exact_duplicate")
QUERIES = ("a red circle", "a large striped green heart", "a yellow star above a red square")
NUM_HITS = 6
FOLDERS = ("toy", "raw", "scenes", "shapes", "pairs", "clean", "run", "features", "index")
"""What the tour writes, and removes before it is taken again; other files in its folder stay."""
METRICS = (
    "retrieval/image_to_text/recall@1",
    "retrieval/text_to_image/recall@1",
    "zero_shot/acc@1",
    "compositional/accuracy",
)
NAMES = ("red circle", "red square", "blue circle", "green star", "black moon")
"""What `vlp classify` chooses from; the picture shows the first."""


@dataclass(frozen=True)
class Tour:
    """A tour under way: its folder, and the seconds that each step has taken so far."""

    out: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def vlp(self, *words: str | Path) -> Any:
        """Print a command as a user would type it, run it in this process, return its result."""
        from vlp.cli import run

        argv = [str(word) for word in words]
        say(f"\n$ vlp {' '.join(map(_quoted, argv))}")
        with self.timed(argv[0]):
            return run(argv)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Count the time inside the block as this step's."""
        start = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start


def run(out: Path, *, samples: int, seed: int, overwrite: bool) -> dict[str, Any]:
    """Take the tour and return its figures: pairs drawn and kept, metrics, seconds of each step.

    A tour with the same settings replaces what the last one left.

    Raises:
        UserError: There are too few samples, or the folder is not this tour's to replace.
    """
    if samples < MIN_SAMPLES or seed < 0:
        raise UserError(
            f"The tour was given samples={samples} and seed={seed}. "
            f"Give at least {MIN_SAMPLES} samples, and a seed of 0 or more."
        )
    config = {"samples": samples, "seed": seed}
    check_output(out, "quickstart", config, overwrite=overwrite)
    if overwrite:
        remove_output(out)
    # `vlp train` goes on with a run that it finds, and another tour is to train anew.
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    write_record(out, "quickstart", config)

    tour = Tour(out)
    with tour.timed("draw"):
        _draw(out / "toy", samples, seed)
    result = {
        "out": str(out),
        "pairs": _make_clean_shards(tour),
        "metrics": _train_and_evaluate(tour),
        "search": _search(tour),
        "classify": _classify(tour),
        "sheet": str(out / "sheet.png"),
        "seconds": {step: round(seconds, 1) for step, seconds in tour.seconds.items()},
    }
    _show_figures(result)
    _draw_sheet(out, result["search"])
    show(f"What the searches found is in {out / 'sheet.png'}.")
    show(f"To search the scenes in a browser: {_this_program()} serve {out / 'index'}")
    return result


def _this_program() -> str:
    """Return how this program was called, so that a line with it can be typed."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return "python -m vlp"
    return "vlp" if shutil.which("vlp") == str(called) else os.path.relpath(called)


def _draw(folder: Path, samples: int, seed: int) -> None:
    """Write the toy world as loose files, as `vlp pack` takes them."""
    from data_pipelines import toy
    from data_pipelines.toy_compositions import draw_compositions

    say(f"Drawing {samples} pairs to train on and {NUM_SCENES} scenes to evaluate on ...")
    _write_files(toy.draw_training(samples, seed), folder / "train")
    _write_files(toy.draw_evaluation(NUM_SCENES, seed), folder / "scenes")
    _write_files(toy.draw_single_shapes(DRAWINGS_PER_CLASS, seed), folder / "shapes")
    _write_files(draw_compositions(NUM_PAIRS, seed), folder / "pairs")
    write_json(folder / "classes.json", toy.zero_shot_classes())


def _write_files(samples: "Iterable[Sample]", folder: Path) -> None:
    """Write each sample as ``key.jpg``, ``key.txt`` and ``key.json``."""
    folder.mkdir(parents=True)
    for sample in samples:
        (folder / f"{sample.key}.jpg").write_bytes(sample.image)
        (folder / f"{sample.key}.txt").write_text(sample.text)
        (folder / f"{sample.key}.json").write_text(json.dumps(sample.metadata))


def _make_clean_shards(tour: Tour) -> dict[str, dict[str, int]]:
    """Pack, look and filter; return how many pairs of each kind were drawn and how many kept."""
    for name in ("train", "scenes", "shapes", "pairs"):
        shards = "raw" if name == "train" else name
        tour.vlp("pack", tour.out / "toy" / name, tour.out / shards)
    tour.vlp("inspect", tour.out / "raw", "--sheet", tour.out / "raw.png")
    tour.vlp("filter", tour.out / "raw", tour.out / "clean", "--keep", *KEEP)
    drawn, kept = (_count_planted(tour.out / name) for name in ("raw", "clean"))
    return {name: {"drawn": drawn[name], "kept": kept[name]} for name in sorted(drawn)}


def _count_planted(shards: Path) -> Counter[str]:
    """Return how many pairs have each planted defect; ``clean`` are those without one."""
    from data_pipelines.shards import open_shards
    from vlp.sample import MARK

    return Counter(sample.metadata[MARK] or "clean" for sample in open_shards(shards))


def _train_and_evaluate(tour: Tour) -> dict[str, float]:
    """Return recall on scenes, accuracy on single shapes and on pairs, none seen in training."""
    run_folder, scenes = tour.out / "run", tour.out / "scenes"
    data = ("--data.shards", tour.out / "clean", "--data.validation", scenes)
    tour.vlp("train", "toy", *data, "--out", run_folder)
    retrieval = tour.vlp("eval", run_folder, scenes, "--tasks", "retrieval")
    task = f"zero_shot(classes={str(tour.out / 'toy' / 'classes.json')!r})"
    zero_shot = tour.vlp("eval", run_folder, tour.out / "shapes", "--tasks", task)
    pairs = tour.vlp("eval", run_folder, tour.out / "pairs", "--tasks", "compositional")
    metrics = retrieval["metrics"] | zero_shot["metrics"] | pairs["metrics"]
    return {name: metrics[name] for name in METRICS}


def _search(tour: Tour) -> dict[str, list[dict[str, Any]]]:
    """Return what each query found among scenes that were not seen in training."""
    tour.vlp("embed", tour.out / "run", tour.out / "scenes", tour.out / "features")
    tour.vlp("index", tour.out / "features", tour.out / "index")
    return {
        query: tour.vlp("search", tour.out / "index", query, "--k", str(NUM_HITS))
        for query in QUERIES
    }


def _classify(tour: Tour) -> list[dict[str, Any]]:
    """Return the names for one drawing of a shape, each with its probability."""
    shapes = sorted((tour.out / "toy" / "shapes").glob("*.json"))
    record = next(p for p in shapes if json.loads(p.read_text())["class"] == NAMES[0])
    picture = record.with_suffix(".jpg")
    return tour.vlp(
        "classify", tour.out / "run", picture, "--classes", *NAMES, "--templates", "a {}"
    )


def _show_figures(result: dict[str, Any]) -> None:
    """Show a line for each step: its seconds and what came of it."""
    pairs, metrics, best = result["pairs"], result["metrics"], result["classify"][0]
    (drawn, planted), (kept, missed) = (_count(pairs, when) for when in ("drawn", "kept"))
    to_text, to_image, accuracy, chosen = (f"{metrics[name]:.3f}" for name in METRICS)
    outcomes = {
        "draw": f"{drawn} pairs, {planted} of them with a planted defect",
        "filter": f"{kept} pairs kept, {missed} of them with a planted defect",
        "eval": f"recall@1 {to_text} to text, {to_image} to image (chance {1 / NUM_SCENES:.4f}); "
        f"zero-shot accuracy {accuracy} (chance {1 / NUM_CLASSES:.4f}); "
        f"true caption of two {chosen} (chance 0.5)",
        "classify": f"{best['class']}, {best['probability']:.0%}",
    }
    rows = [(step, f"{s:.1f}", outcomes.get(step, "")) for step, s in result["seconds"].items()]
    show("")
    show_table(
        ("step", "seconds", "outcome"),
        [*rows, ("in all", f"{sum(result['seconds'].values()):.1f}", "")],
    )


def _count(pairs: dict[str, dict[str, int]], when: str) -> tuple[int, int]:
    """Return the number of pairs, and of those with a planted defect."""
    every = sum(count[when] for count in pairs.values())
    return every, every - pairs["clean"][when]


def _draw_sheet(out: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    """Write a contact sheet: a row for each query, best hit first."""
    from data_pipelines.shards import open_shards
    from vlp.contact_sheet import contact_sheet
    from vlp.image import decode

    scenes = {sample.key: sample for sample in open_shards(out / "scenes")}
    rows = []
    for query, hits in found.items():
        samples = [(scenes[hit["key"]], hit["score"]) for hit in hits]
        pictures = [(decode(s.image), f"{score:.2f} {s.text}") for s, score in samples]
        rows.append((query, pictures))
    contact_sheet(rows, out / "sheet.png")


def _quoted(word: str) -> str:
    """Quote a word for the shell, in double quotes where these change nothing inside."""
    quoted = shlex.quote(word)
    return quoted if quoted == word or set(word) & set('"\\$`!') else f'"{word}"'
