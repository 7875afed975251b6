"""How fast whole training steps are, against open_clip's own trainer: samples per second.

    python tests/benchmarks/step.py DATA            # shards with real captions, such as photographs
    python tests/benchmarks/step.py                 # the toy world's pictures and captions
    python tests/benchmarks/step.py DATA --quick    # one pair of few steps: does it run?

Both sides start from the same weights and take steps on the same batches in the same threads, in
turns in one process. The peer is `open_clip_train.train.train_one_epoch` as it is, with the
optimizer that its `main.py` makes; pictures come to it as its workers hand them over, in fp32 and
normalised, and to ours as uint8. Reading and decoding are not measured. A ratio above 1 means that
ours is faster.
"""

import argparse
import logging
import statistics
import time
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import open_clip
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peers.open_clip_step import PeerTrainer

from data_pipelines.plan import hash63
from data_pipelines.shards import open_shards
from data_pipelines.toy import draw_evaluation
from training.compute.accumulate import Pieces
from training.objective import build_objective
from training.optimization.groups import parameter_groups
from training.optimization.guard import Guard
from training.optimization.optimizers import build_optimizer
from training.options import GuardConfig, OptimizerConfig
from training.step import cut_captions, take_step
from vlp.console import show_table
from vlp.encoder import DualEncoder, create_encoder, read_config
from vlp.image import decode
from vlp.types import Batch

VIT_TI = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 224, "patch_size": 16, "width": 192, "layers": 12},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 6},
}
ARCHITECTURES = {"ViT-Ti/16 at 224": ({"model_cfg": VIT_TI}, 16), "tiny": (read_config("tiny"), 64)}
"""Name to config and batch size."""
OPTIONS = OptimizerConfig(learning_rate=5e-4, clip_norm=0, weight_decay=0.2)
"""open_clip's defaults for vision transformers."""
WHOLE = Pieces()
AGREEMENT = 2e-3
"""Largest difference of two losses in fp32: rounding, grown over the steps."""
COMPARISONS = (
    ("fp32, the same numbers", "open_clip fp32", "vlp fp32", 1.25),
    ("bf16 against amp_bf16", "open_clip amp_bf16", "vlp bf16", 1.2),
    ("bf16 against fp32", "open_clip fp32", "vlp bf16", 2.0),
    ("bf16 and half the patches* against fp32", "open_clip fp32", "vlp bf16, patch dropout", 3.5),
)
"""What a line of the table says, the two sides, and the ratio aimed at."""


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    logging.disable(logging.INFO)  # of the peer's trainer
    began, lines, notes = time.perf_counter(), [], []
    for name, (config, batch_size) in ARCHITECTURES.items():
        encoder = drawn_encoder(config)
        batches = read_batches(options.data, encoder, batch_size, options.steps)
        rates, apart = measured_in_turns(name, sides(config), batches, options)
        notes.append(
            f"{name}: {about_captions(encoder, batches)}; losses in fp32 {apart:.0e} apart"
        )
        lines += rows(name, rates)
    kind = "of CPU time" if options.threads == 1 else "on the wall"
    print(f"\nSamples per second {kind}, medians of {options.pairs} interleaved pairs of")
    print(f"{options.steps} steps each. Ratio and spread are of the pairs' own ratios.")
    print("*Another recipe: half of each picture's patches are left out, as in FLIP.\n")
    print(*notes, sep="\n")
    took = time.perf_counter() - began
    versions = f"open_clip {open_clip.__version__}, torch {torch.__version__}"
    print(f"{versions}, {options.threads} threads, {took:.0f} s in all.\n")
    show_table(["architecture", "step", "open_clip", "vlp", "ratio", "spread", "aim"], lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder of shards with .txt")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="of each measurement")
    parser.add_argument("--threads", type=int, default=1, help="1: CPU time; more: on the wall")
    parser.add_argument("--quick", action="store_true", help="one pair of two steps")
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.steps = 1, 2
    return options


def drawn_encoder(config: dict[str, Any], patch_dropout: float | None = None) -> DualEncoder:
    torch.manual_seed(0)
    return create_encoder(config, patch_dropout=patch_dropout)


def read_batches(
    data: Path | None, encoder: DualEncoder, batch_size: int, count: int
) -> list[Batch]:
    """Return batches of pictures and captions, from the shards' beginning and again if need be."""
    source = open_shards(str(data)) if data else draw_evaluation(batch_size * count, seed=0)
    samples = list(islice(iter(source), batch_size * count))
    pixels = [encoder.transform(decode(sample.image)) for sample in samples]
    tokens = encoder.tokenizer([sample.text for sample in samples])
    places = islice(cycle(range(len(samples))), batch_size * count)
    parts = torch.tensor(list(places)).split(batch_size)
    images = torch.stack(pixels)
    return [
        Batch(
            images[part],
            tokens[part],
            [samples[place].key for place in part.tolist()],
            torch.arange(batch_size),  # the peer knows no equal captions
            torch.tensor([hash63(str(place)) for place in part.tolist()]),
        )
        for part in parts
    ]


def sides(config: dict[str, Any]) -> dict[str, Any]:
    """Return by name what takes steps, each with an encoder of its own from the same weights."""
    encoder = drawn_encoder(config)
    found: dict[str, Any] = {
        f"open_clip {precision}": PeerTrainer(encoder, precision, OPTIONS)
        for precision in ("fp32", "amp_bf16")
    }
    found["vlp fp32"] = OurTrainer(drawn_encoder(config), "no")
    found["vlp bf16"] = OurTrainer(drawn_encoder(config), "bf16")
    if "patch_size" in config["model_cfg"]["vision_cfg"]:
        dropped = drawn_encoder(config, patch_dropout=0.5)
        found["vlp bf16, patch dropout"] = OurTrainer(dropped, "bf16")
    return found


class OurTrainer:
    """Takes our steps, put together as `training/loop.py` does."""

    def __init__(self, encoder: DualEncoder, precision: str) -> None:
        AcceleratorState._reset_state()  # of the one before, with another precision
        self._accelerator = Accelerator(cpu=True, mixed_precision=precision)
        objective = build_objective(("softmax",))
        encoder.train()
        self._parts: Any = _Parts(encoder, objective)
        self._wrapped = self._accelerator.prepare(encoder)
        optimizer = build_optimizer(OPTIONS, parameter_groups(encoder, OPTIONS))
        self._optimizer = self._accelerator.prepare(optimizer)

    def prepare(self, batches: list[Batch]) -> list[Batch]:
        """Return batches as our loader hands them over: they are."""
        return batches

    def take_steps(self, batches: list[Batch]) -> list[float]:
        """Take a step for each batch and return the losses."""
        losses = []
        for batch in batches:
            batch = cut_captions(self._parts.encoder, batch)
            figures, _ = take_step(
                self._accelerator, self._wrapped, self._optimizer, batch, self._parts
            )
            losses.append(figures["loss"])
        return [loss.item() for loss in losses]


@dataclass(frozen=True)
class _Parts:
    """Of the parts of a run, those that a step looks at."""

    encoder: DualEncoder
    objective: Any
    clip_norm: float = 0.0
    pieces: Pieces = WHOLE
    guard: Guard = field(default_factory=lambda: Guard(GuardConfig()))
    average: None = None
    teacher: None = None


def measured_in_turns(
    name: str, trainers: dict[str, Any], batches: list[Batch], options: argparse.Namespace
) -> tuple[dict[str, list[float]], float]:
    """Return samples per second of each side by pair, and how far the first losses in fp32 are."""
    clock = time.process_time if options.threads == 1 else time.perf_counter
    count = sum(len(batch.tokens) for batch in batches)
    rates: dict[str, list[float]] = {side: [] for side in trainers}
    first: dict[str, list[float]] = {}
    for number in range(options.pairs + 1):  # the first warms up, and its losses are compared
        for side, trainer in trainers.items():
            prepared = trainer.prepare(batches)
            start = clock()
            losses = trainer.take_steps(prepared)
            seconds = clock() - start
            first.setdefault(side, losses)
            if number:
                rates[side].append(count / seconds)
        if number:
            speeds = ", ".join(f"{side} {rate[-1]:.1f}" for side, rate in rates.items())
            print(f"{name}, pair {number} of {options.pairs}: {speeds} samples/s", flush=True)
    pairs = zip(first["open_clip fp32"], first["vlp fp32"], strict=True)
    apart = max(abs(theirs - ours) / theirs for theirs, ours in pairs)
    if apart > AGREEMENT:
        raise SystemExit(f"The losses of {name} in fp32 are {apart:.1e} apart.")
    return rates, apart


def rows(name: str, rates: dict[str, list[float]]) -> list[tuple[str, ...]]:
    """Return the lines of an architecture: medians, and the ratio of each pair."""
    lines = []
    for what, theirs, ours, aim in COMPARISONS:
        if ours not in rates:
            continue
        pairs = list(zip(rates[theirs], rates[ours], strict=True))
        ratios = [our / their for their, our in pairs]
        medians = [f"{statistics.median(side):.1f}" for side in zip(*pairs, strict=True)]
        ratio, spread = statistics.median(ratios), f"{min(ratios):.2f}-{max(ratios):.2f}"
        lines.append((name, what, *medians, f"{ratio:.2f}", spread, f"{aim:.2f}"))
    return lines


def about_captions(encoder: DualEncoder, batches: list[Batch]) -> str:
    lengths = [encoder.caption_length(row[None]) for batch in batches for row in batch.tokens]
    longest = [encoder.caption_length(batch.tokens) for batch in batches]
    return (
        f"batches of {len(batches[0].tokens)}; captions of {statistics.mean(lengths):.1f} tokens, "
        f"the longest of a batch {statistics.mean(longest):.1f} of {batches[0].tokens.shape[1]}"
    )


if __name__ == "__main__":
    main()
