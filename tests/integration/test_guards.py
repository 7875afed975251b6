"""Runs with planted faults: left out, gone back from, stopped and gone on with, over processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_support import VIT, colours, one_thread, planted, rows, train, weights

from training import step
from training.commands import RECIPES
from training.compute.processes import start_processes
from training.losses.softmax import Softmax
from training.optimization.guard import Guard
from training.setup import build_parts
from vlp import cli
from vlp.errors import Stopped, UserError
from vlp.types import Batch

SLOW = ("--optimizer.learning-rate", "1e-5", "--data.workers", "0")
"""A loss that hardly moves, so that a small window knows what is usual."""
NAN = float("nan")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("data") / "shards", 480)


@pytest.fixture(scope="module")
def batches(data) -> list[Batch]:
    """Return what the first steps read."""
    toy = RECIPES["toy"]()
    config = replace(
        toy, data=replace(toy.data, shards=(str(data),), batch_size=24, workers=0), precision="fp32"
    )
    stream = build_parts(config, start_processes(config)).loader.batches(0)
    return [next(stream) for _ in range(14)]


def spoil(monkeypatch, batches: list[Batch], factor: float = 1.0, more: float = 0.0) -> None:
    seeds = torch.cat([batch.seed for batch in batches])
    monkeypatch.setattr(Softmax, "__call__", planted(Softmax.__call__, seeds, factor, more))


def stop_after(steps: int, monkeypatch) -> None:
    """Let the next run end as if it were killed, in the step after so many that were taken."""
    limit, taken = step._limit_scale, []

    def stop(parts):
        limit(parts)
        taken.append(0)
        if len(taken) > steps:
            monkeypatch.setattr(step, "_limit_scale", limit)
            raise KeyboardInterrupt

    monkeypatch.setattr(step, "_limit_scale", stop)


def left_out(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]


def checkpoints(run: Path) -> list[str]:
    return sorted(folder.name for folder in (run / "checkpoints").iterdir())


def averages(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").glob("step_*"))[-1]
    return load_file(newest / "ema" / "open_clip_model.safetensors")


def assert_equal_runs(one: Path, other: Path) -> None:
    for of in (weights, averages):
        mine, theirs = of(one), of(other)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert rows(one) == rows(other)
    assert left_out(one) == left_out(other)


def test_a_batch_whose_loss_is_not_finite_is_left_out_and_named_also_when_killed_after_it(
    data, batches, tmp_path, monkeypatch
):
    spoil(monkeypatch, batches[3:4], NAN)
    options = ["--steps", "7", "--save-every", "2", "--ema", "0.9", *SLOW]
    told = train(tmp_path / "whole", data, *options)
    assert told["skipped"] == 1
    (row,) = left_out(tmp_path / "whole")
    assert (row["step"], row["samples_seen"], row["samples_read"]) == (4, 72, 72)
    assert (row["why"], row["action"], row["loss"]) == ("the loss is nan", "skip", None)
    assert row["keys"] == {"0": batches[3].keys}
    written = {row["step"]: row for row in rows(tmp_path / "whole")}
    assert "loss" not in written[4]
    assert "update/image" not in written[4]
    assert written[5]["guard/skipped"] == 1
    stop_after(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", data, *options)
    assert len(left_out(tmp_path / "cut")) == 1
    train(tmp_path / "cut", data, *options)
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


REWIND = ["--steps", "10", "--save-every", "2", "--ema", "0.9", "--guard.window", "8"]
REWIND += ["--guard.spike", "30", "--guard.on-spike", "rewind", *SLOW]


@pytest.mark.slow
@pytest.mark.parametrize("kill_after", [6, 9])
def test_a_run_goes_back_before_a_spike_and_on_behind_its_data(
    kill_after, data, batches, tmp_path, monkeypatch
):
    spoil(monkeypatch, batches[6:7], more=100.0)
    train(tmp_path / "whole", data, *REWIND)
    (row,) = left_out(tmp_path / "whole")
    assert (row["step"], row["action"], row["loss"] > 100) == (7, "rewind", True)
    # Step 7 spiked on weights of step 6, which are not proven: back to 4, and on with batch 8.
    written = rows(tmp_path / "whole")
    assert [row["step"] for row in written] == list(range(1, 11))
    assert all(row["loss"] < 50 for row in written)
    for name in ("guard/skipped", "guard/spikes"):
        assert [row[name] for row in written] == [0] * 4 + [1] * 6
    stop_after(kill_after, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", data, *REWIND)
    train(tmp_path / "cut", data, *REWIND)
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_what_comes_after_a_rewind_is_a_run_that_read_on_behind_the_spike(
    data, batches, tmp_path, monkeypatch
):
    spoil(monkeypatch, batches[6:7], more=100.0)
    read, take = [], step.take_step

    def noted(accelerator, encoder, optimizer, batch, *rest, **more):
        read.append(batch.keys)
        return take(accelerator, encoder, optimizer, batch, *rest, **more)

    monkeypatch.setattr("training.loop.take_step", noted)
    train(tmp_path / "run", data, *REWIND)
    assert read == [batch.keys for batch in batches[:13]]  # steps 1-7, then 5-10


@pytest.mark.slow
def test_a_run_that_meets_spikes_again_and_again_stops(data, batches, tmp_path, monkeypatch):
    spoil(monkeypatch, batches[6:14], more=100.0)
    with pytest.raises(UserError, match="went back to step 4 2 times and met a spike each time"):
        train(tmp_path / "run", data, *REWIND, "--guard.rewinds", "2", "--save-every", "4")


@pytest.mark.slow
def test_how_often_a_run_went_back_is_known_to_a_run_that_goes_on(
    data, batches, tmp_path, monkeypatch
):
    spoil(monkeypatch, batches[6:7], more=100.0)
    options = [*REWIND, "--guard.rewinds", "1"]
    stop_after(6 + 2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", data, *options)
    assert checkpoints(tmp_path / "run") == ["step_0000004", "step_0000006"]
    spoil(monkeypatch, batches[9:10], more=100.0)
    with pytest.raises(UserError, match="went back to step 4 1 times and met a spike each time"):
        train(tmp_path / "run", data, *options)


@pytest.mark.slow
def test_a_last_step_with_nothing_to_go_back_to_is_left_out(data, batches, tmp_path, monkeypatch):
    spoil(monkeypatch, batches[6:7], more=100.0)
    held_out = colours(tmp_path / "held_out", 32, first=500)
    options = [*REWIND, "--steps", "7", "--save-every", "0", "--data.validation", str(held_out)]
    told = train(tmp_path / "run", data, *options)
    assert (told["steps"], told["skipped"]) == (7, 1)
    assert "validation/loss" in told["metrics"]
    assert checkpoints(tmp_path / "run") == ["step_0000007"]
    assert [row["action"] for row in left_out(tmp_path / "run")] == ["skip"]


@pytest.mark.slow
def test_a_checkpoint_due_at_a_step_left_out_is_written_after_the_next_one_taken(
    data, batches, tmp_path, monkeypatch
):
    spoil(monkeypatch, batches[3:5], NAN)
    train(tmp_path / "run", data, "--steps", "8", "--save-every", "4", "--keep.last", "9", *SLOW)
    assert checkpoints(tmp_path / "run") == ["step_0000006", "step_0000008"]


@pytest.mark.slow
def test_a_signal_at_a_step_left_out_saves_and_pushes_out_no_checkpoint(
    data, batches, tmp_path, monkeypatch
):
    options = ["--steps", "8", "--save-every", "2", "--keep.last", "1", "--ema", "0.9", *SLOW]
    spoil(monkeypatch, batches[4:6], NAN)
    train(tmp_path / "whole", data, *options)
    judge = Guard.judge

    def judge_and_signal(self, *given, **more):
        verdict = judge(self, *given, **more)
        if self.in_a_row == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return verdict

    monkeypatch.setattr(Guard, "judge", judge_and_signal)
    with pytest.raises(Stopped, match="after step 5 of 8"):
        train(tmp_path / "cut", data, *options)
    assert checkpoints(tmp_path / "cut") == ["step_0000004", "step_0000005"]
    train(tmp_path / "cut", data, *options)
    assert checkpoints(tmp_path / "cut") == ["step_0000008"]
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_run_that_stops_names_what_it_would_go_on_from(data, batches, tmp_path, monkeypatch):
    spoil(monkeypatch, batches[5:], NAN)
    options = ["--steps", "9", "--save-every", "5", "--guard.patience", "3", *SLOW]
    with pytest.raises(UserError, match=r"is .*step_0000005; no step was taken since"):
        train(tmp_path / "run", data, *options)


@pytest.mark.slow
def test_a_run_of_broken_weights_stops_and_names_the_last_good_checkpoint(data, tmp_path):
    options = ["--steps", "30", "--save-every", "1", "--guard.patience", "3", *SLOW]
    options += ["--stages", "5 steps: freeze=visual", "rest"]
    options += ["--optimizer.groups", "visual: lr=1e35", "--precision", "fp32"]
    with pytest.raises(UserError, match=r"3 steps in a row .* up to step 9.*step_0000005;.*rewind"):
        train(tmp_path / "run", data, *options)
    assert checkpoints(tmp_path / "run") == ["step_0000005", "step_0000006"]


@pytest.mark.slow
def test_what_is_evaluated_in_training_is_the_average(data, tmp_path):
    held_out = colours(tmp_path / "held_out", 32, first=500)
    told = train(
        *(tmp_path / "run", data, "--steps", "8", "--ema", "0.99"),
        *("--data.validation", str(held_out)),
    )
    figures = cli.run(["eval", str(tmp_path / "run"), str(held_out), "--quiet"])
    name = "retrieval/image_to_text/recall@1"
    assert told["metrics"][f"validation/{name}"] == figures["metrics"][name]
    train(
        *(tmp_path / "next", data, "--steps", "1", "--optimizer.learning-rate", "1e-12"),
        *("--model.name", str(tmp_path / "run")),
    )
    own, start = weights(tmp_path / "next"), averages(tmp_path / "run")
    torch.testing.assert_close(own["visual.head.proj.weight"], start["visual.head.proj.weight"])


SPOILED = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from training_support import planted
from training.losses.softmax import Softmax
Softmax.__call__ = planted(Softmax.__call__, torch.tensor({seeds}), {factor}, {more})
from vlp.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "more", "at"), [(NAN, 0.0, 3), (1.0, 1000.0, 6)])
def test_processes_leave_out_and_go_back_as_one_does(
    factor, more, at, data, batches, tmp_path, monkeypatch
):
    (tmp_path / "vit.json").write_text(json.dumps(VIT))  # without batch norm
    options = [*REWIND, "--precision", "fp32", "--model.name", str(tmp_path / "vit.json")]
    bad = batches[at]._replace(seed=batches[at].seed[1:2])  # a sample of the second process's
    spoil(monkeypatch, [bad], factor, more)
    train(tmp_path / "one", data, *options)
    script = tmp_path / "spoiled.py"
    tests, seeds = str(Path(__file__).parents[1]), bad.seed.tolist()
    nan = "float('nan')" if factor != factor else factor
    script.write_text(SPOILED.format(tests=tests, seeds=seeds, factor=nan, more=more))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    argv += [f"--master-port={port}", str(script), "train", "toy", "--out", str(tmp_path / "two")]
    argv += ["--data.shards", str(data), "--data.batch-size", "24", "--log-every", "1", *options]
    ran = subprocess.run(argv, capture_output=True, text=True, env=one_thread())
    assert ran.returncode == 0, ran.stderr
    for of in (weights, averages):
        one, two = of(tmp_path / "one"), of(tmp_path / "two")
        for name in one:
            torch.testing.assert_close(two[name], one[name], atol=2e-5, rtol=1e-4)
    (mine,), (theirs,) = left_out(tmp_path / "one"), left_out(tmp_path / "two")
    for name in ("step", "samples_seen", "samples_read", "action"):
        assert mine[name] == theirs[name]
    assert theirs["keys"] == {"0": mine["keys"]["0"][::2], "1": mine["keys"]["0"][1::2]}
    assert [row["step"] for row in rows(tmp_path / "two")] == list(range(1, 11))
