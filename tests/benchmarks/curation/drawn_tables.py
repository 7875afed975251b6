"""Tables about pictures that are not here, in the form of DataComp's and img2dataset's."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from drawn.photographs import captions

ROWS = 50_000
"""Of a table, at most."""
SHORT = ("photo", "a dog", "img_1")
"""Captions of a fifth of the rows; the others are all different."""


def drawn_tables(folder: Path, count: int) -> Path:
    """Return a folder of tables with captions, sizes and a uid of each picture."""
    texts = np.array(captions(5000, seed=3), object)
    for number, start in enumerate(range(0, count, ROWS)):
        path = folder / f"{number:05d}.parquet"
        if path.exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        rng, rows = np.random.default_rng(number), min(ROWS, count - start)
        uids = rng.integers(0, 2**63, (rows, 2)).tolist()
        columns = {
            "uid": [f"{upper:016x}{lower:016x}" for upper, lower in uids],
            "url": [f"https://example.org/{start + n}.jpg" for n in range(rows)],
            "text": [
                f"{text} {start + n}" if rng.random() < 0.8 else rng.choice(SHORT)
                for n, text in enumerate(rng.choice(texts, rows).tolist())
            ],
            "original_width": rng.integers(64, 1600, rows),
            "original_height": rng.integers(64, 1600, rows),
            "clip_l14_similarity_score": rng.normal(0.2, 0.06, rows),
        }
        pq.write_table(pa.table(columns), path)
    return folder
