"""DataComp's basic filter over the same tables, by its own steps and by ours, without language."""

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from curation.drawn_tables import drawn_tables
from curation.speed import SIDECARS
from curation.tables import TIMEOUT_SECONDS, Table, cpu_seconds, curated, note

from data_pipelines.keep_list import UIDS

PEER = Path(__file__).parents[1] / "peers" / "datacomp_basic.py"
PACKAGES = ("pandas==2.3.3", "pyarrow>=18", "numpy<2.4")
PAIRS = 3


def compared(folder: Path, environment: Path, rows: int) -> list[Table]:
    """Return CPU seconds of both, from tables to the sorted uids that pass, which must be equal."""
    tables, out = drawn_tables(folder / "tables", rows), folder / "listed"
    python, pairs = made(environment), []
    for _ in range(PAIRS):
        told = subprocess.run(
            [str(python), str(PEER), str(tables), str(folder / "datacomp.npy")],
            capture_output=True,
            text=True,
            check=True,
            timeout=TIMEOUT_SECONDS,
        )
        theirs, kept = json.loads(told.stdout)
        with cpu_seconds() as ours:
            curated(tables, out, SIDECARS, keep_list=True)
        pairs.append((theirs, ours[0]))
        note(f"DataComp {theirs:.2f} s, vlp {ours[0]:.2f} s, {kept} kept")
        assert np.array_equal(np.load(out / UIDS), np.load(folder / "datacomp.npy"))
        shutil.rmtree(out)  # so that no score is found there
    ratios = [theirs / ours for theirs, ours in pairs]
    sides = [statistics.median(side) for side in zip(*pairs, strict=True)]
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    title = (
        f"The basic filter of DataComp on {rows:,} rows, without its language model on both sides; "
        "CPU seconds to the sorted uids, which are equal. Ours also writes scores and a report."
    )
    columns = ("DataComp", "vlp", "ratio", "spread")
    return [Table(title, columns, [(*sides, statistics.median(ratios), spread)])]


def made(folder: Path) -> Path:
    """Return the Python of an environment with pandas, made once."""
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        note(f"Making an environment with pandas in {folder}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (folder / "done").touch()
    return python
