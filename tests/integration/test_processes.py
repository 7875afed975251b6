"""Processes of gloo train as one process does."""

import json
import socket
import subprocess
import sys

import pytest
import torch
from training_support import colours, one_thread, rows, train, weights

VIT = {
    "embed_dim": 32,
    "vision_cfg": {"layers": 1, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 12, "width": 32, "heads": 2, "layers": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_of_gloo_train_as_one_process_does(loss, processes, tmp_path):
    data = colours(tmp_path / "shards", 96)
    options = [
        "--loss",
        loss,
        "--steps",
        "3",
        "--optimizer.clip-norm",
        "0.5",
        "--precision",
        "fp32",
    ]
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
