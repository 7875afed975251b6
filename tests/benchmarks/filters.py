"""What filters find, what training makes of it, and how fast and small curation is.

    python tests/benchmarks/filters.py                      # all of it, within 25 minutes
    python tests/benchmarks/filters.py --only planted       # or trained, speed, reduced, datacomp
    python tests/benchmarks/filters.py --quick              # few samples of each: does it run?

Speeds are of CPU time in one process, all of its threads together, so that other work on the
machine changes them little. The tables come last. What is drawn is kept under `.bench/filters`.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from curation import datacomp, planted, reduced, speed, trained
from curation.tables import Table, note, show, vlp

from vlp.environment import hardware, versions

CACHE = Path(__file__).parents[2] / ".bench" / "filters"


class Sizes(NamedTuple):
    """How much is drawn and how long is trained."""

    planted: int
    """Pairs of each draw of the toy world with planted defects."""
    clean: int
    """Pairs that the checkpoint learns from."""
    trained: int
    """Pairs of the raw set whose subsets are trained on."""
    seen: int
    """Samples that each of these runs sees."""
    share: float
    """Of the samples by which the speed of a filter is measured."""
    scores: int
    """Simulated scores."""
    rows: int
    """Rows of tables."""


WHOLE = Sizes(1500, 5000, 2000, 20_480, 1.0, 100_000_000, 100_000)
QUICK = Sizes(200, 600, 400, 1_280, 0.02, 1_000_000, 20_000)


def main() -> None:
    options = parse()
    if options.peak_of:
        print(json.dumps(reduced.peak_of(options.peak_of)))
        return
    began, sizes = time.perf_counter(), QUICK if options.quick else WHOLE
    folder = CACHE / ("quick" if options.quick else "whole")
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[], list[Table]]] = {
        "planted": lambda: planted.planted(folder, checkpoint(folder, sizes), sizes.planted),
        "trained": lambda: trained.trained(folder, checkpoint(folder, sizes), sizes),
        "speed": lambda: speed.speeds(folder, checkpoint(folder, sizes), sizes),
        "reduced": lambda: reduced.reduced(Path(__file__), sizes.scores),
        "datacomp": lambda: datacomp.compared(folder, CACHE / "datacomp", sizes.rows),
    }
    tables = []
    for name, part in parts.items():
        if options.only in (None, name):
            start = time.perf_counter()
            tables += part()
            note(f"{name}: {time.perf_counter() - start:.0f} s")
    for table in tables:
        show(table)
    told = {**hardware(), **versions()}
    print("\n" + ", ".join(f"{name} {told[name]}" for name in ("processor", "cores", "torch")))
    print(f"{time.perf_counter() - began:.0f} s in all.")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few samples: does it run?")
    parser.add_argument("--only", choices=("planted", "trained", "speed", "reduced", "datacomp"))
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def checkpoint(folder: Path, sizes: Sizes) -> Path:
    """Return a run on a clean draw of another seed than any that is filtered."""
    run = folder / "run"
    if not (run / "done").exists():
        shutil.rmtree(run, ignore_errors=True)
        note(f"Training the checkpoint on {sizes.clean:,} clean pairs ...")
        planted.drawn(folder / "clean_draw", planted.CLEAN_SEED, sizes.clean, shares={})
        vlp("train", "toy", "--data.shards", folder / "clean_draw", "--out", run)
        (run / "done").touch()
    return run


if __name__ == "__main__":
    sys.exit(main())
