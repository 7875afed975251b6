"""Runs with stages, frozen towers and optimizers by name; each goes on exactly where it stops."""

import json
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from training_support import colours, one_thread, rows, train, weights

from vlp.errors import UserError

STAGES = ("--stages", "2 steps: freeze=visual", "2 steps: freeze=text lr=0.5", "rest: warmup=50%")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("data") / "shards", 96)


def at_step(run, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:07d}" / "open_clip_model.safetensors")


def moved(run, first: int, last: int) -> set[str]:
    """Return the towers and others of which a number changed between two checkpoints."""
    before, after = at_step(run, first), at_step(run, last)
    changed = (name for name in before if not torch.equal(before[name], after[name]))
    return {name.split(".")[0] for name in changed}


def test_a_locked_image_tower_does_not_move_by_a_bit(data, tmp_path):
    train(tmp_path / "first", data, "--steps", "1")
    options = ["--model.name", str(tmp_path / "first"), "--data.validation", str(data)]
    options += ["--validate-every", "1", "--optimizer.groups", "visual: freeze"]
    train(tmp_path / "lit", data, "--steps", "3", *options)
    before, after = weights(tmp_path / "first"), weights(tmp_path / "lit")
    assert any("running_mean" in name for name in before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("visual.") for name in changed)
    assert "text.token_embedding.weight" in changed


@pytest.fixture(scope="module")
def staged(data, tmp_path_factory):
    """Return a run of three stages with a checkpoint after each of its six steps."""
    run = tmp_path_factory.mktemp("staged") / "run"
    train(run, data, "--steps", "6", "--save-every", "1", "--keep.last", "9", *STAGES)
    return run


def test_each_stage_trains_what_it_does_not_freeze(staged):
    assert moved(staged, 1, 2) == {"text", "logit_scale"}
    assert moved(staged, 2, 4) == {"visual", "logit_scale"}
    assert moved(staged, 4, 6) == {"visual", "text", "logit_scale"}


@pytest.mark.parametrize(
    "step", [2, 5, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 3, 4))]
)
def test_a_run_that_stops_in_any_stage_equals_one_that_did_not(step, staged, data, tmp_path):
    shutil.copytree(staged, tmp_path / "cut")
    for folder in sorted((tmp_path / "cut" / "checkpoints").iterdir())[step:]:
        shutil.rmtree(folder)
    train(tmp_path / "cut", data, "--steps", "6", "--save-every", "1", "--keep.last", "9", *STAGES)
    whole, cut = weights(staged), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert rows(tmp_path / "cut") == rows(staged)


@pytest.mark.parametrize(
    "name",
    ["stable_adamw", *(pytest.param(n, marks=pytest.mark.slow) for n in ("lamb", "lion", "muon"))],
)
def test_a_run_with_any_optimizer_goes_on_exactly(name, data, tmp_path):
    options = ["--steps", "4", "--save-every", "2", "--optimizer.name", name]
    options += ["--stages", "3 steps: freeze=text", "rest", "--optimizer.learning-rate", "1e-3"]
    train(tmp_path / "run", data, *options)
    whole = weights(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_0000004")
    train(tmp_path / "run", data, *options)
    cut = weights(tmp_path / "run")
    assert moved(tmp_path / "run", 2, 4) == {"visual", "text", "logit_scale"}
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.slow
def test_half_the_batch_is_the_same_run_by_samples(data, tmp_path):
    options = ["--samples", "96", "--optimizer.warmup", "48 samples"]
    train(tmp_path / "whole", data, *options)
    train(tmp_path / "half", data, *options, "--data.batch-size", "12")
    whole = {row["samples_seen"]: row["learning_rate"] for row in rows(tmp_path / "whole")}
    half = {row["samples_seen"]: row["learning_rate"] for row in rows(tmp_path / "half")}
    assert (len(whole), len(half)) == (4, 8)
    assert [half[seen] for seen in (24, 48)] == [whole[seen] for seen in (24, 48)]  # the warm-up
    # A row tells the samples after a step; the fall counts those before.
    assert [half[seen - 12] for seen in (72, 96)] == [whole[seen] for seen in (72, 96)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--optimizer.groups", "visuell: freeze"), "No parameter is called 'visuell'"),
        (("--optimizer.name", "lyon"), "no optimizer 'lyon'. Did you mean lion"),
        (("--stages", "9 steps: freeze=visual", "rest"), "The stages are .* long"),
    ],
)
def test_a_mistake_is_told_before_there_is_a_run_folder(options, message, data, tmp_path):
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", data, "--steps", "3", *options)
    assert not (tmp_path / "run").exists()


VIT = {
    "embed_dim": 32,
    "vision_cfg": {"layers": 1, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 12, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture
def vit(tmp_path):
    """Return an architecture without batch norms: their statistics are those of a process."""
    (tmp_path / "vit.json").write_text(json.dumps(VIT))
    return str(tmp_path / "vit.json")


@pytest.mark.slow
def test_small_pictures_then_full_ones_go_on_exactly(vit, data, tmp_path):
    options = ["--model.name", vit, "--steps", "4", "--save-every", "1", "--keep.last", "9"]
    options += ["--stages", "75%: size=16", "rest: lr=0.1", "--data.validation", str(data)]
    train(tmp_path / "whole", data, *options)
    assert at_step(tmp_path / "whole", 4)["visual.positional_embedding"].shape == (17, 64)
    assert moved(tmp_path / "whole", 3, 4) == {"visual", "text", "logit_scale"}
    for step in (2, 3):
        shutil.copytree(tmp_path / "whole", tmp_path / f"cut{step}")
        for folder in sorted((tmp_path / f"cut{step}" / "checkpoints").iterdir())[step:]:
            shutil.rmtree(folder)
        train(tmp_path / f"cut{step}", data, *options)
        whole, cut = weights(tmp_path / "whole"), weights(tmp_path / f"cut{step}")
        assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_train_the_stages_as_one_does(vit, data, tmp_path):
    options = ["--steps", "6", "--precision", "fp32", "--model.name", vit]
    options += [*STAGES[:-1], "rest: size=24"]
    train(tmp_path / "one", data, *options)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    argv += [f"--master-port={port}", "-m", "vlp", "train", "toy", "--out", str(tmp_path / "two")]
    argv += ["--data.shards", str(data), "--data.batch-size", "24", "--log-every", "1", *options]
    ran = subprocess.run(argv, capture_output=True, text=True, env=one_thread())
    assert ran.returncode == 0, ran.stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=2e-5, rtol=1e-4)
