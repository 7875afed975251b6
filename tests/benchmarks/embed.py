"""How fast JPEG photographs are embedded: `vlp embed` against `clip-retrieval inference`.

    python tests/benchmarks/embed.py                   # on photograph-like JPEGs drawn here
    python tests/benchmarks/embed.py DATA              # on a folder of shards of JPEGs
    python tests/benchmarks/embed.py DATA --quick      # ours alone, on a few: does it run?

Both sides read the same folder of JPEGs, images only, with the same ViT-B/32 of random weights,
each as its command is by default but for the batch size, in turns. What is timed is the whole
command, with its start, and the CPU time of all its processes. The peer is in an environment that
is made once under `.bench/`. A ratio above 1 means that ours is better. Features are compared: both
write unit-length rows in fp16. clip-retrieval computes in fp32 on a CPU, whatever ours does.
"""

import argparse
import ctypes
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from drawn.photographs import drawn_photographs
from peers.clip_retrieval_inference import PACKAGES
from peers.environment import environment

from data_pipelines.shards import open_shards
from vlp.checkpoint import save_encoder
from vlp.console import show_table
from vlp.encoder import create_encoder, open_clip_weights, read_config

CACHE = Path(__file__).parents[2] / ".bench"
PEER = Path(__file__).parent / "peers" / "clip_retrieval_inference.py"
ARCHITECTURE = "ViT-B-32"
PEER_WEIGHTS = "weights.pt"
FEW = 8
PRECISIONS = ("fp32", "bf16")
TIMEOUT_SECONDS = 600
PR_SET_CHILD_SUBREAPER = 36


class Cost(NamedTuple):
    """Of a whole command."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of all its processes."""


def main() -> None:
    options = parse()
    count, architecture = (FEW, "tiny") if options.quick else (options.photographs, ARCHITECTURE)
    told = prepared(options.data or drawn_photographs(CACHE / "drawn"), count, architecture)
    told |= {"batch_size": options.batch_size}
    if options.quick:
        costs = [(precision, *ours(told, precision)) for precision in PRECISIONS]
        show_table(["precision", "wall seconds", "CPU seconds"], costs)
        return
    python = environment(CACHE / "clip_inference", PACKAGES)
    pairs: dict[str, list[tuple[Cost, Cost]]] = {name: [] for name in PRECISIONS}
    for number in range(options.pairs):
        peer = theirs(python, told)
        for precision in PRECISIONS:
            pair = peer, ours(told, precision)
            pairs[precision].append(pair)
            print(f"pair {number + 1} of {options.pairs}, {precision}: {pair}", flush=True)
    show_figures(pairs, told["count"])
    for precision in PRECISIONS:
        print(f"{precision}: features are at least {agreement(precision):.5f} alike (cosine).")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder of shards of JPEGs")
    parser.add_argument("--photographs", type=int, default=384)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="ours alone, on a few")
    return parser.parse_args()


def prepared(data: Path, count: int, architecture: str) -> dict[str, Any]:
    """Return folders of all photographs and of a few, and of a model for both sides."""
    pictures = Path(fresh("pictures"))
    for place, sample in enumerate(islice(iter(open_shards(str(data))), count)):
        (pictures / f"{place:05d}.jpg").write_bytes(sample.image)
    model = CACHE / "embed" / architecture
    if not (model / PEER_WEIGHTS).is_file():
        model.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        encoder = create_encoder(read_config(architecture)).eval()
        save_encoder(encoder, model)
        # clip-retrieval's open_clip gives this architecture's text tower no name of its own.
        state = {
            name.removeprefix("text."): own for name, own in open_clip_weights(encoder).items()
        }
        torch.save(state, model / PEER_WEIGHTS)
    count = len(list(pictures.iterdir()))
    weights = str(model / PEER_WEIGHTS)
    told = {"pictures": str(pictures), "count": count, "model": str(model), "weights": weights}
    return told | {"architecture": architecture}


def theirs(python: Path, told: dict[str, Any]) -> Cost:
    """Return what clip-retrieval's command costs."""
    return cost([str(python), str(PEER), json.dumps(told | {"out": fresh("theirs")})])


def ours(told: dict[str, Any], precision: str) -> Cost:
    """Return what our command costs."""
    command = [sys.executable, "-m", "vlp", "embed", told["model"], told["pictures"]]
    command += [fresh(precision), "--only", "images", "--dtype", "fp16", "--precision", precision]
    per_part = -(-told["count"] // (os.cpu_count() or 1))  # a part for each process of the pool
    command += ["--batch-size", str(told["batch_size"]), "--samples-per-part", str(per_part)]
    return cost(command)


def fresh(name: str) -> str:
    """Return a folder for what a side writes, with nothing in it."""
    folder = CACHE / "embed" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return str(folder)


def cost(command: list[str]) -> Cost:
    """Return the wall and CPU seconds of a command, all that it starts included."""
    # Processes whose parent has ended, as a fork server's, become ours, and are waited for.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        command,
        env=environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    took = time.perf_counter() - wall
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} stopped:\n{done.stderr[-3000:]}")
    with suppress(ChildProcessError):
        while True:
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(round(took, 2), round(cpu, 2))


def show_figures(pairs: dict[str, list[tuple[Cost, Cost]]], count: int) -> None:
    """Print the table: medians, and the ratio of each pair as median and range."""
    rows = []
    for precision, measured in pairs.items():
        for place, unit in enumerate(("images/s", "images/CPU-second")):
            rates = [tuple(count / side[place] for side in pair) for pair in measured]
            ratios = [mine / theirs for theirs, mine in rates]
            medians = [f"{statistics.median(side):.1f}" for side in zip(*rates, strict=True)]
            spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
            median = f"{statistics.median(ratios):.2f}"
            rows.append((f"{unit}, {precision}", *medians, median, spread))
    print(f"\n{ARCHITECTURE}, {count} photographs; clip-retrieval computes in fp32 on a CPU.")
    show_table(["figure", "clip-retrieval", "vlp", "ratio", "spread"], rows)


def agreement(precision: str) -> float:
    """Return the least cosine of a picture's two features."""
    sides = []
    for name in ("theirs", precision):
        files = sorted((CACHE / "embed" / name / "img_emb").glob("*.npy"), key=number_of)
        sides.append(np.concatenate([np.load(file) for file in files]).astype(np.float64))
    return float((sides[0] * sides[1]).sum(axis=1).min())


def number_of(path: Path) -> int:
    """Return the number at the end of a file's name."""
    return int(path.stem.rpartition("_")[2])


if __name__ == "__main__":
    main()
