"""How long it takes to decide over 100 million scores, and in how much memory."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from curation.tables import TIMEOUT_SECONDS, Table, peak_mib

from data_pipelines.curation.columns import Column, Columns
from data_pipelines.curation.rules import BoundedFilter
from data_pipelines.curation.survey import lots_of

PER_SHARD = 10_000
LIMIT_MIB = 2048


class Simulated(BoundedFilter):
    """Decides by numbers that were never computed."""

    def score(self, candidates):
        raise AssertionError


def reduced(script: Path, count: int) -> list[Table]:
    """Return time and memory of a new process that keeps the highest 30 % of simulated scores."""
    done = subprocess.run(
        [sys.executable, str(script), "--peak-of", str(count)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    if done.returncode:
        raise SystemExit(f"{count} scores stopped:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    title = (
        "The highest 30 % of simulated scores, exactly; five walks, in each of which the scores "
        "are simulated anew. Memory is all that the process ever held, Python and torch included."
    )
    row = (
        f"{count:,}",
        found["seconds"],
        found["simulating"],
        found["mib"],
        LIMIT_MIB,
        found["kept"] / count,
    )
    columns = ("scores", "CPU seconds", "of these, simulating", "peak, MiB", "limit", "share kept")
    return [Table(title, columns, [row])]


def peak_of(count: str) -> dict[str, float]:
    """Decide in this process, and return its CPU seconds, its peak and how many are kept."""
    shards, simulating = int(count) // PER_SHARD, 0.0
    keys = [""] * PER_SHARD
    left = np.ones(PER_SHARD, bool)

    def load(shard: int) -> Column:
        nonlocal simulating
        start = time.process_time()
        numbers = lots_of(np.arange(shard * PER_SHARD, (shard + 1) * PER_SHARD), 0)
        column = Column(pa.array(numbers), left, keys, shard * PER_SHARD)
        simulating += time.process_time() - start
        return column

    start = time.process_time()
    masks = Simulated(top=0.3).keep(Columns(load, shards))
    kept = sum(int(np.count_nonzero(mask)) for mask in masks)
    seconds = time.process_time() - start
    return {
        "seconds": round(seconds, 1),
        "simulating": round(simulating, 1),
        "mib": round(peak_mib()),
        "kept": kept,
    }
