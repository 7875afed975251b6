"""DataComp's basic filter over the same tables, by its own steps and by ours."""

import json
import shutil
import statistics
import subprocess
from pathlib import Path

import numpy as np
from curation.drawn_tables import drawn_tables
from curation.speed import SIDECARS
from curation.tables import TIMEOUT_SECONDS, Table, cpu_seconds, curated, note
from peers.environment import environment

from data_pipelines.keep_list import UIDS

PEER = Path(__file__).parents[1] / "peers" / "datacomp_basic.py"
PACKAGES = (
    "pandas==2.3.3",
    "pytz==2026.6",
    "python-dateutil==2.9.0.post0",
)
PAIRS = 3
LISTED = {"keep_list": True}
MODELS = {
    "not asked for": ("none", SIDECARS),
    "by fastText, lid.176.ftz": ("fasttext", (*SIDECARS, "language")),
}
"""By how the language is asked for, the peer's model and our rules."""


def compared(folder: Path, cache: Path, rows: int) -> list[Table]:
    """Return CPU seconds of both, from tables to the sorted uids that pass."""
    python = environment(cache, PACKAGES)
    curated(drawn_tables(folder / "few", 100), folder / "warm", (*SIDECARS, "language"), **LISTED)
    tables = drawn_tables(folder / "tables", rows)
    found = [_of_model(python, tables, folder, name) for name in MODELS]
    title = (
        f"The basic filter of DataComp on {rows:,} rows: CPU seconds to the sorted uids, median of "
        f"{PAIRS} pairs; the uids are equal. Ours also writes scores, decisions and a report."
    )
    columns = ("language", "DataComp", "vlp", "ratio", "spread")
    return [Table(title, columns, found)]


def _of_model(python: Path, tables: Path, folder: Path, name: str) -> tuple:
    model, rules = MODELS[name]
    out, listed, pairs = folder / "listed", folder / "datacomp.npy", []
    for _ in range(PAIRS):
        argv = [python, PEER, tables, listed, model]
        told = subprocess.run(
            list(map(str, argv)), capture_output=True, text=True, timeout=TIMEOUT_SECONDS
        )
        if told.returncode:
            raise SystemExit(f"DataComp's filter stopped:\n{told.stderr[-3000:]}")
        theirs, kept = json.loads(told.stdout)
        shutil.rmtree(out, ignore_errors=True)  # so that no score is found there
        with cpu_seconds() as ours:
            curated(tables, out, rules, **LISTED)
        pairs.append((theirs, ours[0]))
        assert np.array_equal(np.load(out / UIDS), np.load(listed))
        note(f"Language {name}: DataComp {theirs:.2f} s, vlp {ours[0]:.2f} s, {kept:,} kept")
    ratios = [theirs / ours for theirs, ours in pairs]
    sides = [statistics.median(side) for side in zip(*pairs, strict=True)]
    return (name, *sides, statistics.median(ratios), f"{min(ratios):.2f}-{max(ratios):.2f}")
