"""A run from recipe to checkpoint: it learns, goes on where it was stopped, and splits evenly."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_pipelines.shards import write_shards
from tests_support import pairs
from vlp import cli
from vlp.errors import UserError
from vlp.types import Sample


def colours(folder: Path, count: int, first: int = 0) -> Path:
    """Write shards whose captions name one of four colours."""
    samples = [
        Sample(s.key, s.image, f"a {s.metadata['colour']} field", s.metadata)
        for s in pairs(first + count)[first:]
    ]
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
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("data") / "shards", 96)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_four_colours_are_learned(loss, data, tmp_path):
    held_out = colours(tmp_path / "held_out", 64, first=200)
    result = train(
        tmp_path / "run", data, "--loss", loss, "--steps", "40", "--data.validation", str(held_out)
    )
    figures = result["metrics"]
    assert figures["validation/retrieval/image_to_text/recall@1"] > 0.9
    assert figures["scale"] <= 100
    losses = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert losses[-1] < losses[0]


def test_a_run_that_goes_on_equals_one_that_never_stopped(data, tmp_path):
    train(tmp_path / "whole", data, "--steps", "12", "--save-every", "5")
    options = ["--steps", "12", "--save-every", "5"]
    argv = [sys.executable, "-c", STOP_AT_STEP_8, "train", "toy", "--out", str(tmp_path / "cut")]
    argv += ["--data.shards", str(data), "--data.batch-size", "24", "--log-every", "1", *options]
    stopped = subprocess.run(argv, capture_output=True, text=True, env=one_thread())
    assert stopped.returncode == 9, stopped.stderr
    assert [row["step"] for row in rows(tmp_path / "cut")] == list(range(1, 8))
    train(tmp_path / "cut", data, *options)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")


STOP_AT_STEP_8 = """
import os, sys, torch
torch.set_num_threads(1)
from training import loop
limit = loop._limit_scale
steps = []
def stop(parts):
    limit(parts)
    steps.append(0)
    if len(steps) == 8:
        os._exit(9)
loop._limit_scale = stop
from vlp.cli import main
main(sys.argv[1:])
"""


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def test_the_same_command_again_has_nothing_left_to_do(data, tmp_path):
    train(tmp_path / "run", data, "--steps", "3")
    before = rows(tmp_path / "run")
    assert train(tmp_path / "run", data, "--steps", "3")["steps"] == 3
    assert rows(tmp_path / "run") == before


def test_another_config_is_refused_with_the_differences(data, tmp_path):
    train(tmp_path / "run", data, "--steps", "2")
    with pytest.raises(UserError, match=r"steps was 2, is 3.*--overwrite"):
        train(tmp_path / "run", data, "--steps", "3")
    assert train(tmp_path / "run", data, "--steps", "3", "--overwrite")["steps"] == 3


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_of_gloo_train_as_one_process_does(loss, processes, data, tmp_path):
    options = ["--loss", loss, "--steps", "3", "--optimizer.clip-norm", "0.5"]
    # Without batch norm: its statistics are those of a process, in every data-parallel trainer.
    (tmp_path / "vit.json").write_text(json.dumps(VIT))
    options += ["--model.name", str(tmp_path / "vit.json")]
    train(tmp_path / "one", data, *options)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    argv += [f"--master-port={port}", "-m", "vlp", "train", "toy", "--out", str(tmp_path / "many")]
    argv += ["--data.shards", str(data), "--data.batch-size", "24", "--log-every", "1", *options]
    ran = subprocess.run(argv, capture_output=True, text=True, env=one_thread())
    assert ran.returncode == 0, ran.stderr
    one, many = weights(tmp_path / "one"), weights(tmp_path / "many")
    for name in one:
        torch.testing.assert_close(many[name], one[name], atol=2e-5, rtol=1e-4)
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "many"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


VIT = {
    "embed_dim": 32,
    "vision_cfg": {"layers": 1, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 12, "width": 32, "heads": 2, "layers": 1},
}


def test_a_run_fine_tunes_from_a_checkpoint_and_keeps_its_scale(data, tmp_path):
    train(tmp_path / "first", data, "--steps", "6")
    train(
        tmp_path / "second",
        data,
        *("--steps", "1", "--optimizer.learning-rate", "1e-9"),
        *("--model.name", str(tmp_path / "first")),
    )
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    torch.testing.assert_close(second["logit_scale"], first["logit_scale"])
    torch.testing.assert_close(second["visual.conv1.weight"], first["visual.conv1.weight"])


def test_the_last_checkpoints_are_kept_and_no_part_is_left(data, tmp_path):
    train(tmp_path / "run", data, "--steps", "9", "--save-every", "2", "--keep", "3")
    left = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["step_0000006", "step_0000008", "step_0000009"]


def test_a_truncated_checkpoint_says_what_to_do(data, tmp_path):
    train(tmp_path / "run", data, "--steps", "2")
    newest = tmp_path / "run" / "checkpoints" / "step_0000002" / "train_state.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"step_0000002 is damaged.*Remove it"):
        train(tmp_path / "run", data, "--steps", "2")


def test_a_batch_larger_than_the_data_leaves_no_folder_behind(data, tmp_path):
    with pytest.raises(UserError, match="larger than the data, 96 samples"):
        train(tmp_path / "run", data, "--data.batch-size", "500")
    assert not (tmp_path / "run").exists()
