"""Processes of gloo train as one process does."""

import json
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from training_support import colours, one_thread, rows, spoil, train, weights

from data_pipelines.plan import Plan, Row, hash63
from vlp.errors import UserError

VIT = {
    "embed_dim": 32,
    "vision_cfg": {"layers": 1, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 12, "width": 32, "heads": 2, "layers": 1},
}


def launch(processes: int, out, shards, *options: str) -> subprocess.CompletedProcess:
    """Train with processes of torch's launcher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    argv += [f"--master-port={port}", "-m", "vlp", "train", "toy", "--out", str(out)]
    argv += ["--data.shards", str(shards), *options]
    return subprocess.run(argv, capture_output=True, text=True, env=one_thread())


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
    options += ["--data.batch-size", "24", "--log-every", "1"]
    ran = launch(processes, tmp_path / "many", data, *options)
    assert ran.returncode == 0, ran.stderr
    one, many = weights(tmp_path / "one"), weights(tmp_path / "many")
    for name in one:
        torch.testing.assert_close(many[name], one[name], atol=2e-5, rtol=1e-4)
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "many"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.slow
def test_bad_samples_are_judged_over_all_processes_and_all_in_the_ledger(tmp_path):
    data = spoil(tmp_path / "spoiled", 96, every=8)
    options = ["--steps", "4", "--data.batch-size", "24", "--log-every", "3"]
    with pytest.raises(UserError, match="of 96 samples cannot be read") as error:
        train(tmp_path / "one", data, *options)
    ran = launch(2, tmp_path / "many", data, *options)
    assert ran.returncode != 0
    assert str(error.value) in ran.stderr
    one, many = (json.loads((tmp_path / n / "faults.json").read_text()) for n in ("one", "many"))
    assert one == many
    assert one["image ends early"]["count"] == 12


@pytest.mark.slow
def test_when_any_process_fails_the_ledger_holds_what_it_knows(tmp_path):
    folder = spoil(tmp_path / "spoiled", 150, every=4)
    (folder / "sizes.json").write_text(
        json.dumps({f"{number:06d}.tar": 50 for number in range(3)} | {"gone.tar": 1})
    )
    source = f"file://{folder}/{{000000,000001,000002,gone}}.tar"
    # A seed by which the second process reads the shard that is gone, not in the first batches.
    counts, seeds = np.array([50, 50, 50, 1]), range(100)
    plans = [Plan([Row(counts, hash63(f"{seed} 0"))], 24) for seed in seeds]
    at = [next(p for p in range(151) if plan.place(p).shard == 3) for plan in plans]
    seed = next(seed for seed in seeds if at[seed] % 2 == 1 and 96 < at[seed] < 120)
    options = ["--data.batch-size", "24", "--log-every", "1", "--save-every", "1000"]
    options += ["--data.max-bad", "1", "--data.workers", "0", "--seed", str(seed), "--epochs", "1"]
    ran = launch(2, tmp_path / "run", source, *options)
    assert ran.returncode != 0
    assert "There is no shard at" in ran.stderr
    faults = json.loads((tmp_path / "run" / "faults.json").read_text())
    places = map(plans[seed].place, range(96))
    bad = [place for place in places if (50 * place.shard + place.index) % 4 == 0]
    assert faults["image ends early"]["count"] >= len(bad) > 12
