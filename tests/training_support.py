"""Small runs that tests train, and what is compared about them."""

import filecmp
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tests_support import pairs

from data_pipelines.shards import write_shards
from training.run_folder.log import TIME_FIELDS
from vlp import cli
from vlp.types import Batch, Sample

VIT = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 12, "width": 32, "heads": 2, "layers": 1},
}
"""Two tiny transformers, without batch norm."""


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


RANKS = """
import json, runpy, sys
import torch.multiprocessing as mp
file, name, processes, arguments, *sys.path[:0] = sys.argv[1:]
function = runpy.run_path(file)[name]
processes = int(processes)
mp.start_processes(
    function, (processes, *json.loads(arguments)), nprocs=processes, start_method="fork"
)
"""


def in_ranks(file: str, function: Callable, processes: int, *arguments: Any) -> None:
    """Call a function of a test file in processes that are forked of a fresh one.

    Its first arguments are the rank and their number. What a test has run before, autograd's or
    another library's threads, may not be forked, and tests are no package to be imported by name.
    """
    paths = [str(Path(__file__).parent), os.getcwd()]
    told = [file, function.__name__, str(processes), json.dumps(arguments), *paths]
    done = subprocess.run(
        [sys.executable, "-c", RANKS, *told], capture_output=True, text=True, env=one_thread()
    )
    assert done.returncode == 0, done.stderr[-3000:]


def train(out: Path, shards: Path, *options: str) -> dict:
    argv = ["train", "toy", "--out", str(out), "--data.shards", str(shards)]
    return cli.run([*argv, "--data.batch-size", "24", "--log-every", "1", "--quiet", *options])


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").glob("step_*"))[-1]
    return load_file(newest / "open_clip_model.safetensors")


def rows(run: Path) -> list[dict]:
    """Return metrics.jsonl less what the clock decides."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(TIME_FIELDS)}
        for line in lines
    ]


def differences(one: Path, other: Path) -> list[str]:
    """Return in what two runs differ: bytes of the last weights, the state, rows of figures."""
    newest = [sorted((run / "checkpoints").glob("step_*"))[-1] for run in (one, other)]
    weights = [folder / "open_clip_model.safetensors" for folder in newest]
    states = [torch.load(folder / "train_state.pt", weights_only=True) for folder in newest]
    found = {
        "the last step": newest[0].name != newest[1].name,
        "weights": not filecmp.cmp(*weights, shallow=False),
        "optimizer, memory or ledger": not are_equal(*states),
        "metrics.jsonl": rows(one) != rows(other),
    }
    return [name for name, is_other in found.items() if is_other]


def are_equal(one, other) -> bool:
    """Return whether tensors, numbers and texts in lists and dicts are the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(are_equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(are_equal, one, other))
    return one == other


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def launch(processes: int, out, shards, *options: str) -> subprocess.CompletedProcess:
    """Train with processes of torch's launcher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    argv += [f"--master-port={port}", "-m", "vlp", "train", "toy", "--out", str(out)]
    argv += ["--data.shards", str(shards), *options]
    return subprocess.run(argv, capture_output=True, text=True, env=one_thread())


def batch(count: int, **more) -> Batch:
    """Return pictures and captions of noise for ``VIT``; two pairs have the group of another."""
    random = torch.Generator().manual_seed(1)
    return Batch(
        images=torch.randint(0, 256, (count, 3, 32, 32), generator=random, dtype=torch.uint8),
        tokens=torch.randint(1, 1000, (count, 12), generator=random),
        keys=[str(number) for number in range(count)],
        group=torch.arange(count) % (count - 2),
        seed=torch.randint(0, 2**62, (count,), generator=random),
        **more,
    )


def planted(call, seeds: torch.Tensor, factor: float, more: float):
    """Return a loss's ``__call__`` that is another for a process's pairs with any of these seeds.

    A number added changes the loss alone, a factor its gradient, too.
    """

    def loss(self, local, world, rows, scale, bias):
        value = call(self, local, world, rows, scale, bias)
        is_bad = torch.isin(local.seed, seeds).any()
        return factor * value + more if is_bad else value

    return loss
