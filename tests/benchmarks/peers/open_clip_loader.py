"""open_clip's training loader under the clock, and the clock itself, which ours is under too.

`loader.py` runs this file in an environment of its own: open_clip 3.3.0 reads shards only with
webdataset up to 0.2.86. The one argument is a JSON object, the last line of output another.
"""

import contextlib
import glob
import json
import os
import random
import re
import sys
import tarfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PACKAGES = (  # what the main environment lacks or has in another version; it lends the rest
    "open_clip_torch==3.3.0",
    "webdataset==0.2.86",
    "pandas>=2.2,<4",
    "python-dateutil",
    "six",
    "simplejpeg==1.9.0",
)
WARM_UP = 3
"""Batches per worker before the clock runs."""
PAGE = 4096
NUM_DECODED = 200
"""Photographs in a measurement of decoding alone."""


def main() -> None:
    options = json.loads(sys.argv[1])
    shards, workers, seconds = options["shards"], options["workers"], options["seconds"]
    if options.get("only_decode"):
        print(json.dumps(decode_limits(shards, workers, seconds)))
    else:
        start = open_clip_start(shards, workers, options["batch_size"])
        print(json.dumps({**measure(start, workers, seconds), "versions": versions()}))


def measure(
    start: Callable[[], Iterator[tuple[Tensor, Any]]], workers: int, seconds: float
) -> dict[str, Any]:
    """Return what a loader does: its first batch, then its steady state for so many seconds.

    Args:
        start: Opens the shards and returns the endless batches, images first.
        workers: Batches are counted in multiples of them, since they come in bursts.
        seconds: Length of the steady state; 0 measures the first batch alone.
    """
    began = time.perf_counter()
    batches = start()
    images, _ = next(batches)
    kind = f"{images.dtype} {list(images.shape)}".removeprefix("torch.")
    figures = {"first_batch_seconds": time.perf_counter() - began, "images": kind}
    figures["kib_per_image"] = images.nbytes / len(images) / 1024
    if not seconds:
        return figures
    for _ in range(WARM_UP * workers):
        read_through(next(batches)[0])
    began, num_batches, num_images = time.perf_counter(), 0, 0
    while time.perf_counter() < began + seconds or num_batches % workers:
        images, _ = next(batches)
        read_through(images)
        num_batches, num_images = num_batches + 1, num_images + len(images)
    figures["images_per_second"] = num_images / (time.perf_counter() - began)
    return {**figures, "pss_mib": pss_mib()}


def read_through(images: Tensor) -> None:
    """Read one value of every page: memory shared by a worker is nobody's before it is touched."""
    step = PAGE // images.element_size()
    images.as_strided((images.numel() // step,), (step,)).sum()


def pss_mib() -> float | None:
    """Return the memory of this process and all below it, shared pages split; None off Linux."""
    if not Path("/proc/self/smaps_rollup").exists():
        return None
    waiting, total = [os.getpid()], 0
    while waiting:
        pid = waiting.pop()
        with contextlib.suppress(OSError):  # it has ended
            memory = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(re.findall(r"^Pss: +(\d+) kB", memory, re.MULTILINE)[0])
            for children in glob.glob(f"/proc/{pid}/task/*/children"):
                waiting += [int(child) for child in Path(children).read_text().split()]
    return total / 1024


def open_clip_start(
    shards: list[str], workers: int, batch_size: int
) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    """Return what opens the shards as `open_clip_train.main` does, with CLIP's augmentation."""
    import open_clip
    from open_clip_train import data

    # The defaults read 1,000 samples of each worker before the first batch: more than there are.
    data._SHARD_SHUFFLE_SIZE, data._SHARD_SHUFFLE_INITIAL = 2, 1
    data._SAMPLE_SHUFFLE_SIZE, data._SAMPLE_SHUFFLE_INITIAL = 200, 50
    transform = open_clip.image_transform(224, is_train=True)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    options = Namespace(
        train_data="::".join(shards),
        train_num_samples=10**9,  # one epoch that goes over the shards again and again
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=batch_size,
        workers=workers,
        world_size=1,
    )
    return lambda: iter(
        data.get_wds_dataset(options, transform, True, tokenizer=tokenizer).dataloader
    )


def versions() -> str:
    import open_clip
    import webdataset

    assert webdataset.__version__ == "0.2.86", webdataset.__file__
    return (
        f"open_clip {open_clip.__version__}, webdataset {webdataset.__version__}, "
        f"torch {torch.__version__}, Python {sys.version.split()[0]}"
    )


def decode_limits(shards: list[str], workers: int, seconds: float) -> dict[str, float]:
    """Return photographs per second where nothing is done but to decode them.

    ``decode``: one thread, the whole picture; ``decode_together``: as many threads as workers;
    ``huffman``: one thread, at an eighth in grey. That reads every bit but transforms nothing: only
    the mean of each block is kept. (libjpeg parses coefficients it has no use for without storing
    them; a reader of all coefficients, as PyPI's jpeglib, spends several times that on copies.)
    """
    import simplejpeg

    photos = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith((".jpg", ".jpeg")) and (file := tar.extractfile(member)):
                    photos.append(file.read())
    photos = random.Random(0).sample(photos, min(len(photos), NUM_DECODED))
    whole = partial(simplejpeg.decode_jpeg, strict=False)
    means = partial(whole, colorspace="GRAY", min_height=1, min_width=1)
    return {
        "decode": decoded_per_second(whole, photos, 1, seconds / 3),
        "decode_together": decoded_per_second(whole, photos, workers, seconds / 3),
        "huffman": decoded_per_second(means, photos, 1, seconds / 3),
    }


def decoded_per_second(
    decode: Callable[[bytes], Any], photos: list[bytes], threads: int, seconds: float
) -> float:
    """Return the rate over as many rounds through the photographs as fill the seconds."""
    rounds, began = 0, time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        while not rounds or time.perf_counter() < began + seconds:
            for _ in pool.map(decode, photos):
                pass
            rounds += 1
    return rounds * len(photos) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
