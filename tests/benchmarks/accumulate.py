"""How much memory a batch in pieces saves, and what that costs in time, against one pass.

    python tests/benchmarks/accumulate.py                            # 4,096 in pieces of 256
    python tests/benchmarks/accumulate.py --batch 2048 --piece 64
    python tests/benchmarks/accumulate.py --quick                    # does it run?

Forward and backward of two tiny transformers with patch dropout and the softmax loss, in fp32 on
one thread. Each measurement is of a new process: CPU time, which other work on the machine changes
less than time on the wall, and, in another, the peak of its memory less what it held before.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from training.compute.accumulate import Pieces, encode
from training.losses.softmax import Softmax
from vlp.console import show_table
from vlp.encoder import DualEncoder, create_encoder
from vlp.types import Batch

TOWERS = {
    "embed_dim": 128,
    "vision_cfg": {"layers": 3, "width": 96, "head_width": 32, "patch_size": 16, "image_size": 64},
    "text_cfg": {"context_length": 16, "width": 96, "heads": 3, "layers": 2},
}
WARM_UP = 64
"""Pairs of a step before the clock runs."""
TIMEOUT_SECONDS = 300


def main() -> None:
    options = parse()
    if options.as_child:
        print(json.dumps(measure(*json.loads(options.as_child))))
        return
    began = time.perf_counter()
    pairs = []
    for number in range(options.pairs):
        whole, pieces = (child(options.batch, piece) for piece in (0, options.piece))
        pairs.append((whole, pieces))
        told = " and ".join(f"{x['seconds']:.1f} s, {x['mib']:.0f} MiB" for x in pairs[-1])
        print(f"pair {number + 1} of {options.pairs}: {told}", flush=True)
    show_errors(WARM_UP * 4, WARM_UP // 4)
    show_figures(pairs, options)
    print(f"torch {torch.__version__}, {time.perf_counter() - began:.0f} s in all.")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--piece", type=int, default=256, help="pictures and captions at a time")
    parser.add_argument("--quick", action="store_true", help="one pair of 64 in pieces of 16")
    parser.add_argument("--as-child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.batch, options.piece = 1, 64, 16
    return options


def child(batch: int, piece: int) -> dict[str, float]:
    """Return what new processes measure of one step: one the time, another the memory."""
    # With a low threshold every freed tensor goes back to the system at once, and is not counted:
    # glibc keeps hundreds of MiB of freed blocks, most of what pieces seem to need. It costs time.
    given_back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    seconds, mib = (measured(batch, piece, malloc) for malloc in ({}, given_back))
    return {"seconds": seconds["seconds"], "mib": mib["mib"]}


def measured(batch: int, piece: int, malloc: dict[str, str]) -> dict[str, float]:
    """Return what a new process with these settings of malloc measures of one step."""
    argv = [sys.executable, __file__, "--as-child", json.dumps([batch, piece])]
    done = subprocess.run(
        argv, env=os.environ | malloc, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)} stopped:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(count: int, piece: int) -> dict[str, float]:
    """Return the CPU seconds of one step of this process and its peak memory in MiB."""
    torch.set_num_threads(1)
    encoder, batch = towers(), drawn(count)
    step(encoder, drawn(WARM_UP), WARM_UP // 2 if piece else 0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    held, began = mib("VmRSS"), time.process_time()
    step(encoder, batch, piece)
    return {"seconds": time.process_time() - began, "mib": mib("VmHWM") - held}


def towers() -> DualEncoder:
    torch.manual_seed(0)
    return create_encoder({"model_cfg": TOWERS}, patch_dropout=0.5).train()


def drawn(count: int) -> Batch:
    """Return noise as pictures and captions, each pair of a group of its own."""
    side, length = TOWERS["vision_cfg"]["image_size"], TOWERS["text_cfg"]["context_length"]
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    tokens = torch.randint(1, 40000, (count, length))
    return Batch(images, tokens, [""] * count, torch.arange(count), torch.arange(count))


def step(encoder: DualEncoder, batch: Batch, piece: int) -> None:
    pairs, encoding = encode(encoder, batch, Pieces(piece, piece))
    rows = torch.arange(len(batch.images))
    Softmax()(pairs, pairs, rows, encoding.scale, encoding.bias).backward()


def mib(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024


def show_errors(count: int, piece: int) -> None:
    """Print how far the gradient in pieces is from that of one pass."""
    batch, gradients = drawn(count), []
    for size in (0, piece):
        encoder = towers()
        step(encoder, batch, size)
        gradients.append({name: p.grad for name, p in encoder.named_parameters()})
    errors = {
        name: float((gradients[1][name] - one).norm() / one.norm())
        for name, one in gradients[0].items()
    }
    worst = max(errors, key=lambda name: errors[name])
    print(f"\n{count} pairs in pieces of {piece}: the gradient of each of {len(errors)} parameters")
    print(f"is that of one pass, but for at most {errors[worst]:.1e} of its norm ({worst}).")


def show_figures(pairs: list[tuple[dict, dict]], options: argparse.Namespace) -> None:
    """Print the table: medians, and the ratio of each pair as median and range."""
    rows = []
    for name, figure in (("CPU seconds", "seconds"), ("MiB of memory, peak", "mib")):
        ratios = [pieces[figure] / whole[figure] for whole, pieces in pairs]
        medians = [statistics.median(x[figure] for x in side) for side in zip(*pairs, strict=True)]
        spread = f"{min(ratios):.3f}-{max(ratios):.3f}"
        row = (
            name,
            *(f"{median:.4g}" for median in medians),
            f"{statistics.median(ratios):.3f}",
            spread,
        )
        rows.append(row)
    print(f"\n{options.batch} pairs in one pass and in pieces of {options.piece}, medians over")
    print(f"{len(pairs)} interleaved pairs; the ratio and its spread are of the pairs' own.")
    show_table(["figure", "one pass", "pieces", "ratio", "spread"], rows)


if __name__ == "__main__":
    main()
