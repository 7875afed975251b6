"""How fast batches come: the loader and the tokenizer against those of open_clip 3.3.0.

    python tests/benchmarks/loader.py                       # on photograph-like JPEGs drawn here
    python tests/benchmarks/loader.py DATA                  # on a folder of shards of JPEGs
    python tests/benchmarks/loader.py DATA --full           # four times as long a measurement
    python tests/benchmarks/loader.py DATA --quick          # ours alone, for a moment: does it run?

Both sides read the same shards from the page cache with the same number of workers, in turns, each
time in a new process. The peer is `open_clip_train.data.get_wds_dataset` as it is, in an
environment that is made once under `.bench/`. A ratio above 1 means that ours is better.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import open_clip
import torch
from drawn.photographs import captions, drawn_photographs
from numpy.random import default_rng
from peers.environment import environment
from peers.open_clip_loader import PACKAGES, measure
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_to_tensor, resized_crop

from data_pipelines.augment import Augmentation, crop_box
from data_pipelines.decode import largest_shrink, training_views
from data_pipelines.shards import open_shards
from data_pipelines.sources import find_shards
from data_pipelines.speed import BATCH_SIZE, open_loader
from vlp.console import show_table
from vlp.image import decode
from vlp.tokenizer import create_tokenizer

CACHE = Path(__file__).parents[2] / ".bench"
PEER = Path(__file__).parent / "peers" / "open_clip_loader.py"
NUM_CAPTIONS = 4096
SIZE = (224, 224)
NUM_COMPARED = 100
"""Photographs whose scaled decoding is compared with exact pixels."""
TIMEOUT_SECONDS = 600
Pair = tuple[float | None, float | None]
"""A figure of open_clip's and ours, measured one after the other."""


def main() -> None:
    options = parse()
    if options.as_ours:
        print(json.dumps(measure_ours(json.loads(options.as_ours))))
        return
    began = time.perf_counter()
    folder = options.data or drawn_photographs(CACHE / "drawn")
    shards = [str(shard.resolve()) for shard in find_shards(folder)]
    packed = packed_shards(shards)
    changes: dict[str, dict[str, Any]] = {
        "exact pixels": {},
        "scaled decoding": {"scaled": True},
        "packed to 256 px": {"shards": packed},
    }
    for shard in (*shards, *packed):
        Path(shard).read_bytes()  # into the page cache
    common = {"shards": shards, "workers": options.workers, "batch_size": BATCH_SIZE}
    common |= {"scaled": False, "samples_seen": 0}
    common["seconds"] = options.seconds * (4 if options.full else 1)
    if options.quick:
        try_out(common, changes)
        return
    python = environment(CACHE / "open_clip", PACKAGES)
    pairs, limits, resumed = measured_in_turns(python, common, changes, options.pairs)
    show_figures(pairs, tokenizer_pairs(options.pairs), resumed)
    show_limits(limits, pairs["exact pixels"], options.workers)
    show_fidelity(shards)
    print(f"\n{pairs['exact pixels'][0][0]['versions']}.")
    took = time.perf_counter() - began
    print(f"{len(shards)} shards of {folder}, {options.workers} workers, {took:.0f} s in all.")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder of shards of JPEGs")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--full", action="store_true", help="four times the seconds")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="ours alone, for a moment")
    parser.add_argument("--as-ours", help=argparse.SUPPRESS)
    return parser.parse_args()


def measured_in_turns(
    python: Path, common: dict[str, Any], changes: dict[str, dict[str, Any]], count: int
) -> tuple[dict[str, list[tuple[dict, dict]]], list[dict[str, float]], list[float]]:
    """Return by name what open_clip and we report, the decode limits, and our seconds to resume."""
    ours, peer = [sys.executable, __file__, "--as-ours"], [str(python), str(PEER)]
    pairs: dict[str, list[tuple[dict, dict]]] = {name: [] for name in changes}
    limits, resumed = [], []
    half = {"samples_seen": len(open_shards(common["shards"])) // 2, "seconds": 0}
    for number in range(count):
        for name, change in changes.items():
            pair = report(peer, common), report(ours, common | change)
            pairs[name].append(pair)
            speeds = " and ".join(f"{side['images_per_second']:.0f}" for side in pair)
            print(f"pair {number + 1} of {count}, {name}: {speeds} images/s", flush=True)
        limits.append(report(peer, common | {"only_decode": True}))
        resumed.append(report(ours, common | half)["first_batch_seconds"])
    return pairs, limits, resumed


def try_out(common: dict[str, Any], changes: dict[str, dict[str, Any]]) -> None:
    """Run what needs no environment of open_clip's once, for a moment, and print what it says."""
    for name, change in changes.items():
        ours = [sys.executable, __file__, "--as-ours"]
        print(name, report(ours, common | change | {"seconds": 0.1}))
    print(tokenizer_pairs(1))
    show_fidelity(common["shards"])


def measure_ours(options: dict[str, Any]) -> dict[str, Any]:
    """Return what the clock says of our loader, in this process."""
    create_tokenizer({})  # the peer has its tokenizer before the clock runs, too

    def start() -> Iterator[tuple[torch.Tensor, Any]]:
        loader = open_loader(
            options["shards"], workers=options["workers"], is_scaled=options["scaled"]
        )
        batches = loader.batches(options["samples_seen"])
        return ((batch.images, batch.tokens) for batch in batches)

    return measure(start, options["workers"], options["seconds"])


def report(command: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Return what a new process reports of itself in its last line."""
    done = subprocess.run(
        [*command, json.dumps(options)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} stopped:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def packed_shards(shards: Sequence[str]) -> list[str]:
    """Return the same photographs packed to a short side of 256."""
    packed = CACHE / "packed"
    source = Path(shards[0]).parent
    options = [str(source), str(packed), "--short-side", "256", "--overwrite"]
    command = [sys.executable, "-m", "vlp", "pack", *options, "--samples-per-shard", "100"]
    subprocess.run(command, check=True)
    return [str(shard) for shard in find_shards(packed)]


def tokenizer_pairs(count: int) -> dict[str, list[Pair]]:
    """Return captions per second, for captions met before and for new ones."""
    tokenizers = open_clip.get_tokenizer("ViT-B-32"), create_tokenizer({})
    again = captions(NUM_CAPTIONS, seed=0)
    pairs = {"captions/s, repeating": [], "captions/s, unseen": []}
    tokenized(tokenizers, again)
    for number in range(count):
        pairs["captions/s, repeating"].append(tokenized(tokenizers, again))
        unseen = captions(NUM_CAPTIONS, seed=1 + number)
        pairs["captions/s, unseen"].append(tokenized(tokenizers, unseen))
    return pairs


def tokenized(tokenizers: tuple[Callable, Callable], texts: list[str]) -> tuple[float, float]:
    """Return captions per second of both tokenizers, which must agree, in batches."""
    rates, ids = [], []
    for tokenizer in tokenizers:
        began = time.process_time()  # of this one thread: others on the machine do not count
        starts = range(0, len(texts), BATCH_SIZE)
        ids.append(torch.cat([tokenizer(texts[i : i + BATCH_SIZE]) for i in starts]))
        rates.append(len(texts) / (time.process_time() - began))
    assert torch.equal(*ids), "the tokenizers disagree"
    return rates[0], rates[1]


def show_figures(
    pairs: dict[str, list[tuple[dict, dict]]], tokens: dict[str, list[Pair]], resumed: list[float]
) -> None:
    """Print the table: medians, and the ratio of each pair as median and range."""

    def of(name: str, figure: str) -> list[Pair]:
        return [(theirs[figure], ours[figure]) for theirs, ours in pairs[name]]

    faster = {f"images/s, {name}": of(name, "images_per_second") for name in pairs} | tokens
    smaller = {
        "KiB handed over per image": of("exact pixels", "kib_per_image"),
        "MiB of all processes (PSS)": of("exact pixels", "pss_mib"),
        "seconds to the first batch": of("exact pixels", "first_batch_seconds"),
    }
    rows = [row(name, figures, is_cost=False) for name, figures in faster.items()]
    rows += [row(name, figures, is_cost=True) for name, figures in smaller.items()]
    spread = f"{min(resumed):.2f}-{max(resumed):.2f} s"
    rows.append(
        ("seconds to resume mid-epoch", "cannot", f"{statistics.median(resumed):.2f}", "-", spread)
    )
    print("\nAgainst open_clip 3.3.0, medians over interleaved pairs. Ratio and spread are of the")
    print("pairs' own ratios: above 1, ours is better.")
    show_table(["figure", "open_clip", "vlp", "ratio", "spread"], rows)
    kinds = [side["images"] for side in pairs["exact pixels"][0]]
    print(f"Batches of images: open_clip {kinds[0]}, vlp {kinds[1]}.")


def row(name: str, figures: list[Pair], *, is_cost: bool) -> tuple[str, ...]:
    """Return a line of the table; a figure that the system does not give stays empty."""
    known = [(theirs, ours) for theirs, ours in figures if theirs is not None and ours is not None]
    if not known:
        return (name, "-", "-", "-", "-")
    ratios = [theirs / ours if is_cost else ours / theirs for theirs, ours in known]
    sides = [f"{statistics.median(side):.4g}" for side in zip(*known, strict=True)]
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    return (name, *sides, f"{statistics.median(ratios):.2f}", spread)


def show_limits(
    limits: list[dict[str, float]], pairs: list[tuple[dict, dict]], workers: int
) -> None:
    """Print what share of decoding alone the loader reaches with exact pixels."""
    speeds = [ours["images_per_second"] for _, ours in pairs]
    for name, times, text in (
        ("decode", workers, f"the decode limit (simplejpeg in one process, times {workers})"),
        ("decode_together", 1, f"decoding in {workers} threads at once"),
        ("huffman", workers, f"the Huffman floor (an eighth in grey, times {workers})"),
    ):
        shares = [
            speed / (limit[name] * times) for speed, limit in zip(speeds, limits, strict=True)
        ]
        rate = statistics.median(limit[name] * times for limit in limits)
        print(f"{statistics.median(shares):.0%} of {text}: {rate:.0f} images/s")


def show_fidelity(shards: Sequence[str]) -> None:
    """Print how far scaled decoding is from Pillow's and torchvision's pixels of the same crop."""
    decibels = []
    for number, sample in enumerate(islice(iter(open_shards(list(shards))), NUM_COMPARED)):
        options, image = Augmentation(), decode(sample.image)
        box = crop_box(*image.size, options, default_rng(number))
        shrink = largest_shrink(box, SIZE)
        left, top, right, bottom = box
        corner = top // shrink * shrink, left // shrink * shrink
        sides, size = (bottom - top, right - left), list(SIZE)
        exact = resized_crop(image, *corner, *sides, size, InterpolationMode.BICUBIC)
        views = training_views(sample.image, [SIZE], options, [default_rng(number)], is_scaled=True)
        error = (pil_to_tensor(exact).double() - views[0].double()).square().mean().item()
        if shrink > 1 and error:
            decibels.append(10 * math.log10(255**2 / error))
    print(
        f"Scaled decoding, random crops: {statistics.median(decibels):.1f} dB from exact pixels, "
        f"at least {min(decibels):.1f}."
    )


if __name__ == "__main__":
    main()
