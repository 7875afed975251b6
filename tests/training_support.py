"""Small runs that tests train, and what is compared about them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from tests_support import pairs

from data_pipelines.shards import write_shards
from vlp import cli
from vlp.types import Sample


def colours(folder: Path, count: int, first: int = 0) -> Path:
    """Write shards whose captions name one of four colours."""
    samples = [
        Sample(s.key, s.image, f"a {s.metadata['colour']} field", s.metadata)
        for s in pairs(first + count)[first:]
    ]
    write_shards(samples, folder, samples_per_shard=50)
    return folder


def spoil(folder: Path, count: int, *, every: int) -> Path:
    """Write shards in which every so many samples one has half an image."""
    samples = pairs(count)
    for number in range(0, count, every):
        samples[number] = replace(samples[number], image=samples[number].image[:60])
    write_shards(samples, folder, samples_per_shard=50)
    return folder


def train(out: Path, shards: Path, *options: str) -> dict:
    argv = ["train", "toy", "--out", str(out), "--data.shards", str(shards)]
    return cli.run([*argv, "--data.batch-size", "24", "--log-every", "1", "--quiet", *options])


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").glob("step_*"))[-1]
    return load_file(newest / "open_clip_model.safetensors")


def rows(run: Path) -> list[dict]:
    """Return metrics.jsonl less what the clock decides."""
    clock = {"samples_per_second", "data_wait_share"}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in clock and not k.startswith("data/")}
        for line in lines
    ]


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
