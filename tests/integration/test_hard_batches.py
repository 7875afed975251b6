"""Runs on mined batches: exact when stopped, with several processes, and when they mine again."""

import json
import os
import random
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from fork_server import ForkServer
from tests_support import pairs
from training_support import VIT, differences, launch, one_thread, rows, train

from data_pipelines.mining.mined import read_mined, write_mined
from data_pipelines.mining.row import MinedRow
from data_pipelines.shards import write_shards
from training import step
from training.config import TrainConfig
from training.options import DataConfig
from training.reading import open_sources
from vlp import cli
from vlp.checkpoint import list_checkpoints, step_of
from vlp.errors import Stopped, UserError

SAMPLES = 100
KILLS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return shards in which some captions are equal but for their case."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    samples = pairs(SAMPLES)
    samples[7] = type(samples[7])("00007", samples[7].image, samples[60].text.upper())
    write_shards(samples, folder, samples_per_shard=30)
    return folder


@pytest.fixture(scope="module")
def mined(data, model, tmp_path_factory):
    """Return a plan mined of features of an encoder that knows nothing yet."""
    features = tmp_path_factory.mktemp("features") / "features"
    cli.run(["embed", str(model), str(data), str(features), "--engine", "inline", "--quiet"])
    out = features.with_name("hard")
    argv = ["mine", str(features), str(data), str(out), "--clusters", "3", "--batch-size", "24"]
    told = cli.run([*argv, "--by", "image", "--apart", "image:0.99999", "--quiet"])
    assert told["samples"] == SAMPLES
    assert told["samples_in_groups"] == 2
    return out


def stopped_at(number: int, monkeypatch) -> None:
    """Have the next run get a signal in one of its steps."""
    steps, limit = [], step._limit_scale

    def stop(parts):
        limit(parts)
        steps.append(0)
        if len(steps) == number:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(step, "_limit_scale", stop)


def options(mined) -> list[str]:
    """Return a run whose batches get harder and are mined again within epochs and at their end."""
    told = ["--data.mined", str(mined), "--data.hard", "0 -> 0.75 over 50%"]
    return [*told, "--data.remine", "100 samples", "--save-every", "0", "--data.workers", "0"]


def test_a_run_that_mines_again_and_was_stopped_equals_one_that_never_was(
    data, mined, tmp_path, monkeypatch
):
    (tmp_path / "vit.json").write_text(json.dumps(VIT))
    argv = ["--steps", "7", *options(mined), "--model.name", str(tmp_path / "vit.json")]
    train(tmp_path / "whole", data, *argv)
    # Batches of 24: the fifth step crosses 100 samples, the second epoch's first whole ones.
    names = sorted(path.name for path in (tmp_path / "whole" / "mined").iterdir())
    assert [int(name.partition("-")[0]) for name in names] == [120]
    stopped_at(6, monkeypatch)
    with pytest.raises(Stopped):
        train(tmp_path / "cut", data, *argv)
    monkeypatch.undo()
    train(tmp_path / "cut", data, *argv)
    assert differences(tmp_path / "whole", tmp_path / "cut") == []
    assert names == sorted(path.name for path in (tmp_path / "cut" / "mined").iterdir())
    path = tmp_path / "cut" / "mined" / names[0]
    plan = read_mined(path)
    assert plan.read is not None
    assert np.unpackbits(plan.read)[:SAMPLES].sum() == 20  # of the second epoch
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match=r"mined plan .* is not as it was written"):
        train(tmp_path / "cut", data, *argv)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"hard": "0.25"}, r"--data.hard is about mined batches. Write --data.mined"),
        ({"remine": "9 steps"}, r"--data.remine is about mined batches"),
        ({"mined": "hard", "hard": "2"}, r"data.hard is '2'. Write a share from 0"),
        ({"mined": "hard", "hard": "0 -> 1"}, r'"0 -> 0.5 over 20%"'),
        (
            {"mined": "hard", "hard": "0 -> 1 over 3 parsecs"},
            "The time in data.hard is '3 parsecs'",
        ),
        ({"mined": "hard", "remine": "5 minutes"}, "by the clock"),
        ({"mined": "hard", "resample": True}, r"--data.resample. Leave it out"),
        ({"mined": "hard", "weights": (1.0,)}, r"--data.weights. Leave it out"),
    ],
)
def test_what_does_not_go_with_mined_batches_is_refused_in_a_line(asked, said):
    with pytest.raises(UserError, match=said):
        DataConfig(shards=("shards",), **asked)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--data.mined", "MINED", "--data.group", "image"], "Run `vlp mine --group image`"),
        (
            ["--data.mined", "MINED", "--data.group", "label"],
            "with --group caption, .* Run `vlp mine --group label --label-key cls`",
        ),
        (["--data.mined", "DATA"], "Cannot read the mined plan"),
    ],
)
def test_a_plan_that_does_not_fit_the_run_is_refused(argv, said, data, mined, tmp_path):
    names = {"MINED": str(mined), "DATA": str(data)}
    with pytest.raises(UserError, match=said):
        train(tmp_path / "run", data, *[names.get(word, word) for word in argv], "--steps", "2")


def test_a_plan_of_another_class_is_refused(data, mined, tmp_path):
    plan = read_mined(mined)
    path = write_mined(replace(plan, told={**plan.told, "group": "label"}), tmp_path)
    argv = ["--data.mined", str(path), "--data.group", "label", "--data.label-key", "colour"]
    with pytest.raises(UserError, match="Run `vlp mine --group label --label-key colour`"):
        train(tmp_path / "run", data, *argv, "--steps", "2")


def test_a_plan_that_a_run_mined_within_an_epoch_is_one_of_whole_epochs_to_another(
    data, mined, tmp_path
):
    read = np.packbits(np.arange(SAMPLES) < 20)
    path = write_mined(replace(read_mined(mined), read=read), tmp_path, "000000000120")
    plan = DataConfig(shards=(str(data),), mined=str(path), batch_size=24)
    row = open_sources(TrainConfig(data=plan, samples=200))[1].rows[0]
    assert isinstance(row, MinedRow)
    assert sorted(row.arrangement(0).order) == list(range(SAMPLES))


def test_a_plan_of_other_shards_is_refused(data, mined, tmp_path):
    write_shards(pairs(40), tmp_path / "others", samples_per_shard=30)
    with pytest.raises(UserError, match=r"mined of 100 samples, and the shards here hold 40"):
        train(tmp_path / "run", tmp_path / "others", "--data.mined", str(mined), "--steps", "2")


@pytest.mark.slow
def test_two_processes_mine_and_train_as_one_does(data, mined, tmp_path):
    (tmp_path / "vit.json").write_text(json.dumps(VIT))  # batch norm's statistics are a process's
    argv = [*options(mined), "--data.batch-size", "24", "--log-every", "1", "--steps", "8"]
    argv += ["--precision", "fp32", "--model.name", str(tmp_path / "vit.json")]
    for processes in (1, 2):
        ran = launch(processes, tmp_path / str(processes), data, *argv)
        assert ran.returncode == 0, ran.stderr
    one, two = (rows(tmp_path / name) for name in ("1", "2"))
    assert len(one) == len(two) == 8
    for a, b in zip(one[:5], two[:5], strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
    # Features differ in their last bits, by which a cluster may; what had been read does not.
    plans = [read_mined(next((tmp_path / name / "mined").iterdir())) for name in ("1", "2")]
    np.testing.assert_array_equal(plans[0].read, plans[1].read)
    assert (plans[0].cluster == plans[1].cluster).mean() > 0.9


@pytest.mark.slow
def test_a_run_killed_at_random_moments_while_it_mines_equals_one_that_never_was(
    data, mined, tmp_path
):
    runs = ForkServer(tmp_path, one_thread())
    argv = ["train", "toy", "--data.shards", str(data), "--data.batch-size", "24"]
    argv += [*options(mined), "--steps", "50", "--save-every", "3", "--log-every", "1", "--out"]
    runs.start(*argv, str(tmp_path / "whole"))
    assert runs.end() == 0, runs.said
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    moments = random.Random(seed)
    for _ in range(KILLS):
        if any(step_of(folder) > 40 for folder in list_checkpoints(tmp_path / "cut")):
            break
        pid = runs.start(*argv, str(tmp_path / "cut"))
        runs.wait_for("step", moments.randint(1, 5))
        time.sleep(moments.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        runs.end()
    runs.start(*argv, str(tmp_path / "cut"))
    assert runs.end() == 0, runs.said
    runs.close()
    assert differences(tmp_path / "whole", tmp_path / "cut") == []
    plans = [sorted(p.name for p in (tmp_path / n / "mined").iterdir()) for n in ("whole", "cut")]
    assert plans[0] == plans[1]
    assert len(plans[0]) == 11
