"""Soups, WiSE-FT and checkpoint averages: sums of weights, in one folder that open_clip loads."""

import json
import shutil

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from training_support import VIT

from vlp import cli
from vlp.checkpoint import save_encoder
from vlp.encoder import create_encoder
from vlp.errors import UserError

WEIGHTS = "open_clip_model.safetensors"


def write(folder, seed: int, **vision):
    torch.manual_seed(seed)
    model = VIT | {"vision_cfg": VIT["vision_cfg"] | vision}
    folder.mkdir(parents=True)
    save_encoder(create_encoder({"model_cfg": model}), folder)
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [write(folder / name, seed) for seed, name in enumerate("abc")]


def states(*folders):
    return [load_file(folder / WEIGHTS) for folder in folders]


def export(out, *words):
    return cli.run(["export", *map(str, words[:1]), str(out), *map(str, words[1:]), "--quiet"])


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        (("{b}", "{c}"), (1 / 3, 1 / 3, 1 / 3)),
        (("{b}", "{c}", "--weights", "2", "1", "1"), (0.5, 0.25, 0.25)),
        (("{b}", "{c}", "--weights", "-0.5", "1", "0.5"), (-0.5, 1.0, 0.5)),
        (("{b}", "--alpha", "0.3"), (0.3, 0.7, 0.0)),
    ],
)
def test_sums_are_those_of_a_loop_over_models(options, shares, three, tmp_path):
    words = [word.format(b=three[1], c=three[2]) for word in options]
    export(tmp_path / "out", three[0], "--average", *words)
    found, models = states(tmp_path / "out")[0], states(*three)
    for name, value in found.items():
        wanted = sum(s * m[name].double() for s, m in zip(shares, models, strict=True))
        torch.testing.assert_close(value, wanted.float(), rtol=1e-6, atol=1e-7)


def test_equal_weights_are_their_own_sum_to_the_bit(three, tmp_path):
    copies = [shutil.copytree(three[0], tmp_path / f"copy{n}") for n in range(2)]
    export(tmp_path / "out", three[0], "--average", *copies)
    own, mean = states(three[0], tmp_path / "out")
    assert own.keys() == mean.keys()
    assert all(torch.equal(own[name], mean[name]) for name in own)


@pytest.fixture(scope="module")
def run(three, tmp_path_factory):
    """Return what is left of a run that was fine-tuned from the first of three models."""
    run = tmp_path_factory.mktemp("run") / "run"
    for step, seed in ((2, 5), (10, 6), (9, 7)):
        write(run / "checkpoints" / f"step_{step:07d}", seed)
    model = {"name": str(three[0]), "weights": None, "image_weights": None, "text_weights": None}
    record = {"command": "train", "config": {"model": model}}
    (run / "config.json").write_text(json.dumps(record))
    return run


def test_the_newest_checkpoints_of_a_run_are_averaged(run, tmp_path):
    told = export(tmp_path / "out", run, "--average", "last=2")
    assert [name[-2:] for name in told["models"]] == ["10", "09"]
    folders = [run / "checkpoints" / name for name in ("step_0000009", "step_0000010")]
    one, other, mean = states(*folders, tmp_path / "out")
    torch.testing.assert_close(mean["visual.proj"], (one["visual.proj"] + other["visual.proj"]) / 2)


def test_wise_ft_lies_between_a_run_and_what_it_started_from(run, three, tmp_path):
    newest = run / "checkpoints" / "step_0000010"
    export(tmp_path / "out", run, "--average", "start", "--alpha", "0.25")
    start, tuned, between = states(three[0], newest, tmp_path / "out")
    for name, value in between.items():
        torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * tuned[name])


def test_open_clip_loads_what_is_exported_and_the_same_command_writes_it_again(three, tmp_path):
    for _ in range(2):
        export(tmp_path / "out", three[0], "--average", three[1])
    model = open_clip.create_model(f"local-dir:{tmp_path / 'out'}")
    found = states(tmp_path / "out")[0]
    torch.testing.assert_close(model.state_dict()["visual.proj"], found["visual.proj"])
    with pytest.raises(UserError, match=r"written with another config.*--overwrite"):
        export(tmp_path / "out", three[0], "--average", three[2])
    export(tmp_path / "out", three[0], "--overwrite")
    own, alone = states(three[0], tmp_path / "out")
    assert all(torch.equal(own[name], alone[name]) for name in own)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"width": 64}, "class_embedding is 32 and 64"),
        ({"layers": 3}, r"resblocks.2.* is in one of them only"),
        ({"head_width": 8}, r"model_cfg.vision_cfg.head_width is 16 and 8"),
    ],
)
def test_models_of_other_architectures_are_refused_in_one_line(vision, message, three, tmp_path):
    other = write(tmp_path / "other", 3, **vision)
    with pytest.raises(UserError, match=f"different architectures: .*{message}") as error:
        export(tmp_path / "out", three[0], "--average", other)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("{run}", "--average", "last=4"), "holds 3 whole checkpoints, not 4"),
        (("{run}", "--average", "last=x"), "Cannot read 'last=x'"),
        (("{a}", "--average", "last=2"), "is no run with checkpoints"),
        (("{run}", "--average", "last=2", "{a}"), "'last=2' stands alone"),
        (("{a}", "--average", "start"), "is no run's folder"),
        (("{a}", "--average", "{b}", "--weights", "1"), "1.0 for 2 models. Write one for each"),
        (("{a}", "--average", "{b}", "--weights", "1", "-1"), "sum above 0"),
        (("{a}", "--alpha", "0.5"), "--alpha is 0.5, for 1 models"),
        (("{a}", "--average", "{b}", "--alpha", "1.5"), "share from 0 to 1"),
        (("{a}", "--average", "{b}", "--alpha", "1", "--weights", "1", "1"), "no --weights"),
        (("{a}", "--average", "nothing"), "There is no model nothing"),
    ],
)
def test_what_cannot_be_summed_is_refused_in_one_line(words, message, run, three, tmp_path):
    words = [word.format(run=run, a=three[0], b=three[1]) for word in words]
    with pytest.raises(UserError, match=message):
        export(tmp_path / "out", *words)
