"""What `vlp train --dry-run` tells, and that it is true."""

import json
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from PIL import Image
from training_support import VIT, colours, one_thread, train

from training.compute.footprint import Footprint, footprint, to_shapes
from training.optimization.schedule import plan_schedule
from training.recipes import RECIPES
from vlp import cli
from vlp.encoder import create_encoder
from vlp.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("data") / "shards", 64)


def tell(out, recipe, *options) -> dict:
    return apart(cli.run, ["train", recipe, "--out", str(out), "--dry-run", "--quiet", *options])


def apart(function, *arguments):
    """Call in another process: fake tensors start threads, after which tests could not fork."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


@pytest.mark.parametrize(
    "name",
    [n if n == "toy" else pytest.param(n, marks=pytest.mark.slow) for n in RECIPES],
)
def test_every_recipe_can_be_told_with_no_weights_at_hand(name, data, tmp_path):
    config = RECIPES[name]()
    options = ["--data.shards", str(data), "--data.resample", "--processes", "8"]
    options += ["--data.captions", "txt"]
    if "epochs" in config.length:  # drawn with replacement, there are none
        options += ["--samples", "400000000"]
    told = tell(tmp_path / "run", name, *options)
    assert not (tmp_path / "run").exists()
    sheet = tmp_path / "run.first.png"
    assert told["sheet"] == str(sheet)
    assert Image.open(sheet).width > 8 * 128
    assert sum(told["memory_bytes"].values()) > 0
    assert told["traffic_bytes"]["gradients averaged"] > 0
    image = told["parameters"][0]
    assert (image["trained"] == 0) == (name == "lit_b16")


def sizes(tmp_path, *options: str, processes: int = 1) -> dict:
    (tmp_path / "vit.json").write_text(json.dumps(VIT))
    model = ["--model.name", str(tmp_path / "vit.json"), "--samples", "100000"]
    return tell(tmp_path / "run", "toy", *model, "--processes", str(processes), *options)


@pytest.mark.slow
def test_weights_and_optimizer_state_are_what_they_are_and_sharding_splits_them(tmp_path):
    encoder = create_encoder({"model_cfg": VIT})
    weights = 4 * sum(p.numel() for p in encoder.parameters())
    alone = sizes(tmp_path, "--precision", "fp32")
    memory = alone["memory_bytes"]
    assert memory["weights"] == memory["gradients"] == weights
    tensors = 2 * len(list(encoder.parameters()))
    assert memory["optimizer state"] == pytest.approx(2 * weights, abs=4 * tensors)
    assert alone["traffic_bytes"] == {}
    sharded = sizes(tmp_path, "--sharding", "fsdp", processes=4)["memory_bytes"]
    assert sharded["weights"] == weights / 4
    assert sharded["optimizer state"] == memory["optimizer state"] / 4
    many = sizes(tmp_path, processes=4)
    assert many["traffic_bytes"]["gradients averaged"] == 2 * 3 / 4 * weights
    features = 2 * 4 * 16 * 128  # both modalities, fp32, dim, batch
    assert many["traffic_bytes"]["gradients of features summed"] == 2 * 3 / 4 * features
    pieces = sizes(tmp_path, "--precision", "fp32", "--image-piece", "16", "--text-piece", "16")
    assert pieces["memory_bytes"]["activations"] < memory["activations"] / 6


def toy_footprint() -> Footprint:
    config = RECIPES["toy"]()
    schedule = plan_schedule(config, config.run_length(1000))
    with torch.device("meta"):
        outline = create_encoder({"model_cfg": VIT})
    return footprint(outline, to_shapes(outline), config, schedule, processes=4, in_bf16=False)


def test_activations_of_shapes_are_those_that_autograd_keeps(monkeypatch):
    monkeypatch.setattr("vlp.attention.LONGEST_PLAIN", {})  # a GPU holds no products of all tokens
    told = apart(toy_footprint)
    encoder, kept = create_encoder({"model_cfg": VIT}).train(), {}
    own = {p.untyped_storage().data_ptr() for p in (*encoder.parameters(), *encoder.buffers())}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder(torch.zeros(32, 3, 32, 32, dtype=torch.uint8), torch.ones(32, 12).long())
    real = sum(storage.nbytes() for storage in kept.values())
    assert told.memory["activations"] == pytest.approx(real, rel=0.02)


def test_a_dry_run_says_what_the_run_folder_would(data, tmp_path):
    train(tmp_path / "run", data, "--steps", "1")
    options = ["--data.shards", str(data), "--data.batch-size", "24", "--log-every", "1"]
    before = sorted(tmp_path.rglob("*"))
    told = tell(tmp_path / "run", "toy", *options, "--steps", "1")
    assert "would go on from" in told["run_folder"]
    told = tell(tmp_path / "run", "toy", *options, "--steps", "2")
    assert "refused: " in told["run_folder"]
    assert "steps was 1, is 2" in told["run_folder"]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "run.first.png"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dry-run", "--processes", "7"], "128 does not divide by 7 processes"),
        (["--dry-run", "--processes", "0"], "--processes is 0. Write 1 or more."),
        (["--processes", "8"], "--processes goes with --dry-run"),
    ],
)
def test_processes_that_cannot_be_are_refused(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        cli.run(["train", "toy", "--out", str(tmp_path / "run"), "--samples", "1000", *options])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trackers", "nothing"], "There is no tracker called 'nothing'"),
        (["--data.resample", "--save-every", "1 epochs"], "no epochs. Write --save-every"),
        (["--validate-every", "10"], "--validate-every '10' needs held-out shards"),
        (["--keep.best", "validation/loss"], "--keep.best validation/loss needs held-out shards"),
        (["--loss", "distill", "--teacher", "/nonexistent"], "There is no model /nonexistent"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(options, message, tmp_path):
    argv = ["train", "toy", "--out", str(tmp_path / "run"), "--dry-run", "--samples", "1000"]
    with pytest.raises(UserError, match=message):
        apart(cli.run, [*argv, *options])


@pytest.mark.slow
def test_recomputation_larger_pictures_and_a_teacher_change_what_is_counted(tmp_path):
    plain = sizes(tmp_path)["memory_bytes"]
    again = sizes(tmp_path, "--speed.recompute", "image", "text")["memory_bytes"]
    assert again["activations"] < 0.8 * plain["activations"]
    larger = sizes(tmp_path, "--stages", "50%: size=64", "rest")["memory_bytes"]
    assert larger["activations"] > 1.5 * plain["activations"]
    taught = sizes(tmp_path, "--loss", "distill", "--teacher", "ViT-B-32:openai")["memory_bytes"]
    assert taught["teacher's weights"] == pytest.approx(4 * 151.277e6, rel=1e-3)


@pytest.mark.slow
def test_the_dry_run_of_the_docs_says_what_they_say(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    _, command, shown = re.split(r"(?m)^\$ vlp (train .*--dry-run.*)\n", text)
    shown = shown.partition("```")[0]
    argv = [sys.executable, "-m", "vlp", *command.split()]
    env = one_thread() | {"PYTHONPATH": str(Path(__file__).parents[2])}
    said = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, env=env, check=True)
    number = r"\d[\d.,]*\d|\d"
    assert re.sub(number, "", shown).split() == re.sub(number, "", said.stdout).split()
    old, new = (
        [float(found.replace(",", "")) for found in re.findall(number, told)]
        for told in (shown, said.stdout)
    )
    assert new == pytest.approx(old, rel=0.02, abs=0.002)  # other versions of torch keep others
