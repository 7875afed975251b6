"""How steps are computed is no part of what a run is: it may change when the run goes on."""

import json
import shutil

import pytest
import torch
from training_support import VIT, colours, rows, train, weights

OPTIONS = ("--optimizer.warmup", "0%", "--optimizer.schedule", "constant")


@pytest.fixture
def model(tmp_path):
    (tmp_path / "vit.json").write_text(json.dumps(VIT))
    return str(tmp_path / "vit.json")


@pytest.mark.slow
def test_a_run_goes_on_with_other_ways_to_compute_and_a_window_is_profiled(tmp_path, model):
    shards = colours(tmp_path / "shards", 120)
    options = ("--model.name", model, *OPTIONS)
    train(tmp_path / "whole", shards, *options, "--steps", "4", "--speed.no-cut-captions")
    ours = ("--save-every", "2", *options, "--steps", "4")
    train(tmp_path / "run", shards, *ours, "--speed.profile", "2-3")
    (trace,) = (tmp_path / "run" / "profile").iterdir()
    assert "aten::" in trace.read_text()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_0000004")
    train(tmp_path / "run", shards, *ours, "--speed.recompute", "image", "text")
    whole, ours = weights(tmp_path / "whole"), weights(tmp_path / "run")
    for name, value in whole.items():
        torch.testing.assert_close(ours[name], value, atol=1e-3, rtol=0)
    pairs = zip(rows(tmp_path / "whole"), rows(tmp_path / "run"), strict=True)
    assert all(abs(theirs["loss"] - mine["loss"]) < 1e-4 for theirs, mine in pairs)
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["speed/samples_per_second_per_device"] == row["samples_per_second"]
    assert row["speed/tflops_per_device"] > 0
    assert "speed/mfu" not in row  # nobody states the peak of a CPU


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling for a CPU needs g++")
def test_a_compiled_run_has_the_weights_of_a_plain_one_in_pieces_too(tmp_path, model):
    shards = colours(tmp_path / "shards", 120)
    options = ("--model.name", model, *OPTIONS, "--steps", "3", "--image-piece", "10")
    train(tmp_path / "plain", shards, *options)
    train(tmp_path / "compiled", shards, *options, "--speed.compile")
    plain, compiled = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    assert compiled.keys() == plain.keys()
    # Of all together: Adam turns the rounding of a gradient near 0 into a whole step of a weight.
    whole, other = (torch.cat([run[name].flatten() for name in plain]) for run in (plain, compiled))
    assert (other - whole).norm() < 2e-3 * whole.norm()
