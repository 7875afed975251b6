"""How much memory and time the losses take, and how exact they are, against those of open_clip.

    python tests/benchmarks/losses.py               # about 10 minutes on two cores
    python tests/benchmarks/losses.py --full        # sigmoid up to 65,536 too, and more pairs
    python tests/benchmarks/losses.py --threads 2   # time on the wall instead of CPU time
    python tests/benchmarks/losses.py --quick       # one pair of small sizes: does it run?

Forward and backward in fp32, dim 512, distinct groups, both sides on the same features. Memory is
the peak of a new process less what it held before, the features' gradients included. A ratio above
1 means that ours is better.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.sigmoid import Sigmoid
from training.losses.softmax import Softmax
from vlp.console import show_table
from vlp.types import Pairs

DIM = 512
SIZES = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
TIMED = (2048, 4096, 8192)
SMALL = (512, 1024)
COMPARED = {"softmax": (8192, 16384), "sigmoid": (8192,)}
MIB = 2**20
TIMEOUT_SECONDS = 1800
Leaves = tuple[Tensor, Tensor, Tensor, Tensor]
"""Images, texts, scale and bias, all with gradients."""


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if options.peak_of:
        print(json.dumps(peak_mib(*json.loads(options.peak_of))))
        return
    began = time.perf_counter()
    show_errors()
    show_times(options)
    show_memory(options)
    versions = f"open_clip {open_clip.__version__}, torch {torch.__version__}"
    print(f"{versions}, {options.threads} threads, {time.perf_counter() - began:.0f} s in all.")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs of each time")
    parser.add_argument("--full", action="store_true", help="all sizes of all losses, 11 pairs")
    parser.add_argument(
        "--threads", type=int, default=1, help="1: CPU time; more: time on the wall"
    )
    parser.add_argument("--quick", action="store_true", help="one pair of up to 1,024")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.pairs = 1 if options.quick else 11 if options.full else options.pairs
    return options


def drawn(
    count: int, scale: float = 50.0, cosine: float = 0.25, dtype: torch.dtype = torch.float32
) -> Leaves:
    """Return unit-length features whose own pairs have about this cosine."""
    generator = torch.Generator().manual_seed(0)
    image, noise = (torch.randn(count, DIM, generator=generator) for _ in range(2))
    image, noise = F.normalize(image, dim=-1), F.normalize(noise, dim=-1)
    text = F.normalize(cosine * image + (1 - cosine**2) ** 0.5 * noise, dim=-1)
    del noise
    leaves = (image, text, torch.tensor(scale), torch.tensor(-10.0))
    image, text, scale_, bias = (leaf.to(dtype).requires_grad_() for leaf in leaves)
    return image, text, scale_, bias


def step(side: str, name: str, leaves: Leaves) -> Callable[[], Tensor]:
    """Return a function that gives the loss of open_clip or of ours."""
    image, text, scale, bias = leaves
    if side == "open_clip":
        peer = {"softmax": open_clip.loss.ClipLoss, "sigmoid": open_clip.loss.SigLipLoss}[name]()
        return lambda: peer(image, text, scale, *([bias] if name == "sigmoid" else []))
    loss = {"softmax": Softmax(), "sigmoid": Sigmoid()}[name]
    rows = torch.arange(len(image))
    pairs = Pairs(image, text, rows, rows)
    return lambda: loss(pairs, pairs, rows, scale, bias)


def forward_and_backward(function: Callable[[], Tensor], leaves: Leaves) -> float:
    for leaf in leaves:
        leaf.grad = None
    loss = function()
    loss.backward()
    return loss.item()


def show_errors() -> None:
    """Print how far gradients are from those in fp64 near the end of training."""
    at = {"count": 2048, "scale": 100.0, "cosine": 0.3}
    exact = drawn(**at, dtype=torch.float64)
    loss = forward_and_backward(step("open_clip", "softmax", exact), exact)
    rows = []
    for name, side, is_half in (
        ("open_clip, fp32", "open_clip", False),
        ("open_clip, bf16 autocast", "open_clip", True),
        ("vlp, fp32", "vlp", False),
        ("vlp, bf16 autocast", "vlp", True),
    ):
        leaves = drawn(**at)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_half):
            value = step(side, "softmax", leaves)()
        value.backward()
        errors = [
            relative_error(mine.grad, wanted.grad)
            for mine, wanted in zip(leaves[:3], exact[:3], strict=True)
        ]
        rows.append((name, f"{value.item():.4e}", *(f"{error:.1e}" for error in errors)))
    print(f"\nSoftmax of 2,048 pairs at scale 100, loss {loss:.4e} in fp64: relative error of")
    print("gradients from those in fp64.")
    show_table(["loss", "value", "images", "texts", "scale"], rows)


def relative_error(gradient: Tensor | None, wanted: Tensor | None) -> float:
    assert gradient is not None
    assert wanted is not None
    return float((gradient.double() - wanted).norm() / wanted.norm())


def show_times(options: argparse.Namespace) -> None:
    """Print medians over interleaved pairs, and the ratio of each pair as median and range."""
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    rows = []
    for name in ("softmax", "sigmoid"):
        for count in SMALL if options.quick else TIMED:
            leaves = drawn(count)
            pairs = []
            for number in range(options.pairs + 1):  # the first warms up
                pair = []
                for side in ("open_clip", "vlp"):
                    function = step(side, name, leaves)
                    start = clock()
                    forward_and_backward(function, leaves)
                    pair.append(clock() - start)
                pairs += [pair] * (number > 0)
            ratios = [theirs / ours for theirs, ours in pairs]
            sides = [f"{statistics.median(side) * 1e3:.0f}" for side in zip(*pairs, strict=True)]
            spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
            rows.append((name, count, *sides, f"{statistics.median(ratios):.2f}", spread))
    kind = "of CPU" if options.threads == 1 else "on the wall"
    print(f"\nMilliseconds {kind}, forward and backward, medians of {options.pairs} pairs.")
    show_table(["loss", "pairs", "open_clip", "vlp", "ratio", "spread"], rows)


def show_memory(options: argparse.Namespace) -> None:
    """Print peaks in new processes; the floor is the gradients of the features, which must be."""
    rows = []
    for name in ("softmax", "sigmoid"):
        for count in SMALL if options.quick else SIZES:
            if name == "sigmoid" and count > 16384 and not options.full:
                continue
            ours = measured("vlp", name, count, options.threads)
            row = [name, count, f"{2 * count * DIM * 4 / MIB:.1f}", f"{ours:.1f}"]
            if options.quick or count in COMPARED[name]:
                theirs = measured("open_clip", name, count, options.threads)
                row += [f"{theirs:.0f}", f"{theirs / ours:.1f}"]
            rows.append([*row, *["-"] * (6 - len(row))])
            print(f"peak of {name} at {count}: {ours:.1f} MiB", file=sys.stderr, flush=True)
    print("\nMiB at the peak, the gradients of the features included; the floor is these alone.")
    show_table(["loss", "pairs", "floor", "vlp", "open_clip", "ratio"], rows)


def measured(side: str, name: str, count: int, threads: int) -> float:
    """Return what a new process reports of its peak."""
    asked = ["--peak-of", json.dumps([side, name, count]), "--threads", str(threads)]
    # With a low threshold every freed tensor goes back to the system at once, and is not counted.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, __file__, *asked],
        env=os.environ | malloc,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    if done.returncode:
        raise SystemExit(f"{side} {name} at {count} stopped:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_mib(side: str, name: str, count: int) -> float:
    """Return the peak of forward and backward in this process, less what it held before."""
    small = drawn(1024)
    forward_and_backward(step(side, name, small), small)  # what libraries keep is not the loss's
    del small
    leaves = drawn(count)
    function = step(side, name, leaves)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status_mib("VmRSS")
    forward_and_backward(function, leaves)
    return status_mib("VmHWM") - before


def status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
