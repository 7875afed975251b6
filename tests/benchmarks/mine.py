"""Time and memory of mining a million samples, from features on disk to the plan of an epoch.

    OMP_NUM_THREADS=2 python tests/benchmarks/mine.py FOLDER   # clusters; or --neighbours 3
    python tests/benchmarks/mine.py --quick                    # 5,000 x 32: does it run?

FOLDER gets the features, 2 GB: fp16, of random directions around as many centres as a web set has
topics, with a near-duplicate for one in fifty. What is measured is one process, from opening the
features to the plan on disk, then to the order of one epoch; keys and captions are not read.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from data_pipelines.mine import mine_pool
from data_pipelines.mining.mined import read_mined, write_mined
from data_pipelines.mining.options import MineOptions
from data_pipelines.mining.ramp import Ramp
from data_pipelines.mining.row import MinedRow
from data_pipelines.mining.samples import Pool
from data_pipelines.shards import ShardSet
from vlp.features import stack

TOPICS = 2000
BLOCK = 50_000
DUPLICATES = 50
"""One sample in so many is nearly another."""
BATCH_SIZE = 1024


def main() -> None:
    """Draw features where there are none, mine them, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--neighbours", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="5,000 samples of 32 numbers")
    told = parser.parse_args()
    if told.quick:
        told.samples, told.dim = 5000, 32
    with tempfile.TemporaryDirectory() as drawn:
        told.folder = told.folder or Path(drawn)
        if not (told.folder / "img_emb").is_dir():
            draw(told.folder, told.samples, told.dim)
        measure(told)


def measure(told: argparse.Namespace) -> None:
    """Mine what lies in a folder, arrange an epoch, and print what that took."""
    start = time.perf_counter()
    features = {kind: stack(told.folder, kind) for kind in ("image", "text")}
    rows, own = len(features["image"]), np.arange(len(features["image"]))
    counts = np.full(100, rows // 100)
    counts[-1] += rows - counts.sum()
    names = [Path(f"{number:06d}.tar") for number in range(100)]
    shards = ShardSet(names, counts, np.ones(100, bool))
    options = MineOptions(neighbours=told.neighbours)
    mined = mine_pool(Pool(features, own, own.astype(np.int32)), shards, options)
    path = write_mined(mined, told.folder)
    seconds = time.perf_counter() - start
    print(f"{rows:,} x {told.dim}: mined in {seconds:.0f} s, {path.stat().st_size / 1e6:.1f} MB.")
    print(f"{len(mined.apart):,} pairs kept apart. Peak memory {peak():.2f} GB.")
    row = MinedRow(counts, 0, BATCH_SIZE, read_mined(path), Ramp(0.5, 0.5))
    start = time.perf_counter()
    order = row.arrangement(1)
    print(
        f"An epoch in batches of {BATCH_SIZE}: {time.perf_counter() - start:.1f} s, {order.met} "
        f"samples meet one that they may not. Peak memory {peak():.2f} GB."
    )


def draw(folder: Path, samples: int, dim: int) -> None:
    """Write image and text features, a block in memory at a time."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((TOPICS, dim), np.float32)
    for kind, name in (("image", "img_emb"), ("text", "text_emb")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        lots = np.random.default_rng(1)  # the same topic for both
        for part, start in enumerate(range(0, samples, BLOCK)):
            count = min(BLOCK, samples - start)
            rows = centres[lots.integers(TOPICS, size=count)]
            rows = rows + 1.5 * rng.standard_normal(rows.shape, np.float32)
            twice = np.flatnonzero(np.arange(count) % DUPLICATES == 1)
            rows[twice] = rows[twice - 1] + 0.1 * rng.standard_normal((len(twice), dim), np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            np.save(folder / name / f"{kind}_{part}.npy", rows.astype(np.float16))


def peak() -> float:
    """Return the most memory that this process has had, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
