"""How fast shards are read for training, stage by stage."""

import time
from typing import Any

from data_pipelines.augment import Augmentation
from data_pipelines.captions import CaptionChoice
from data_pipelines.loader import Loader
from data_pipelines.plan import Plan, Row
from data_pipelines.reader import Reader
from data_pipelines.shards import open_shards
from data_pipelines.sources import Source
from vlp.console import show, show_table
from vlp.errors import UserError
from vlp.tokenizer import create_tokenizer

SECONDS = 10.0
BATCH_SIZE = 64
IMAGE_SIZE = (224, 224)


def open_loader(source: Source, *, workers: int, is_scaled: bool = False, seed: int = 0) -> Loader:
    """Return a loader as CLIP's training needs it: crops of 224 x 224 and 77 tokens of its BPE."""
    shards = open_shards(source)
    reader = Reader(
        sources=[shards],
        plan=Plan([Row(shards.counts, seed)], min(BATCH_SIZE, len(shards))),
        tokenizer=create_tokenizer({}),
        image_size=IMAGE_SIZE,
        augmentation=Augmentation(),
        captions=CaptionChoice.parse("txt"),
        seed=seed,
        is_scaled=is_scaled,
    )
    return Loader(reader, workers=workers, max_bad=1.0)


def measure_speed(source: str, *, workers: int, is_scaled: bool, seed: int = 0) -> dict[str, Any]:
    """Read for ten seconds as training does, and print where the time goes.

    Raises:
        UserError: There is no sample, or none can be read.
    """
    if workers < 0:
        raise UserError(f"The number of workers is {workers}. Write 0 or more.")
    start = time.perf_counter()
    loader = open_loader(source, workers=workers, is_scaled=is_scaled, seed=seed)
    counted = time.perf_counter()
    batches = loader.batches(0)
    next(batches)
    first = time.perf_counter()
    loader.speed()
    images = 0
    while time.perf_counter() - first < SECONDS:
        images += len(next(batches).keys)
    seconds = time.perf_counter() - first
    figures = loader.speed()
    batches.close()
    found = {
        "source": source,
        "samples": loader.reader.plan.num_samples,
        "workers": workers,
        "images_per_second": images / seconds,
        "mb_per_second": figures["data/source_0_mb_per_second"],
        "seconds_to_count": counted - start,
        "seconds_to_first_batch": first - counted,
        "ms_per_image": {
            name.removeprefix("data/").removesuffix("_ms"): value
            for name, value in figures.items()
            if name.endswith("_ms")
        },
        "slowest_read": dict(zip(("seconds", "shard"), loader.tally.slowest, strict=True)),
        "faults": loader.faults().as_dict(),
    }
    _show(found, loader)
    return found


def _show(found: dict[str, Any], loader: Loader) -> None:
    show(
        f"{found['images_per_second']:.0f} images/s, {found['mb_per_second']:.1f} MB/s from "
        f"{found['source']} by {found['workers']} workers, crops of 224 x 224.\n"
        f"Counted in {found['seconds_to_count']:.2f} s, first batch after "
        f"{found['seconds_to_first_batch']:.2f} s.\n"
    )
    total = sum(found["ms_per_image"].values())
    rows = [
        (stage.replace("_", " "), f"{ms:.3f}", f"{ms / total:.0%}")
        for stage, ms in found["ms_per_image"].items()
    ]
    show_table(("stage", "ms per image", "share"), rows)
    slowest = found["slowest_read"]
    show(f"\nSlowest read: {1000 * slowest['seconds']:.1f} ms, {slowest['shard']}.")
    if found["faults"]:
        show(f"Faults: {loader.faults().summary()}.")
