"""Runs that a teacher of another size and tokenizer teaches, from a checkpoint or from disk."""

import json
import shutil

import pytest
import torch
from tests_support import COLOURS, picture
from training_support import VIT, launch, rows, train, weights

from data_pipelines.embed import embed
from data_pipelines.shards import write_shards
from training import step
from vlp.checkpoint import save_encoder
from vlp.encoder import create_encoder, read_config
from vlp.errors import UserError
from vlp.types import Sample

WHOLE = ("--data.augmentation.scale", "1", "1", "--data.augmentation.ratio", "1", "1")
"""Every crop is the whole of a square picture, as `vlp embed` sees it."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a folder with shards of square pictures, a student, a teacher, and its features."""
    folder = tmp_path_factory.mktemp("world")
    names = list(COLOURS)
    samples = [
        Sample(f"{i:05d}", picture(names[i % 4], (40, 40), noise=i), f"a {names[i % 4]} field")
        for i in range(96)
    ]
    write_shards(samples, folder / "shards", samples_per_shard=50)
    (folder / "vit.json").write_text(json.dumps(VIT))
    torch.manual_seed(5)
    teacher = create_encoder(read_config("tiny"))
    teacher.set_logits(30.0, None)
    (folder / "teacher").mkdir()
    save_encoder(teacher, folder / "teacher")
    embed(str(folder / "teacher"), str(folder / "shards"), folder / "features")
    return folder


def taught(world, out, by, *options):
    options = ["--teacher", str(world / by), "--precision", "fp32", *options]
    options += ["--model.name", str(world / "vit.json"), "--optimizer.warmup", "1 steps"]
    return train(out, world / "shards", *options)


def assert_near(one, other):
    a, b = weights(one), weights(other)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=5e-4, rtol=1e-3, msg=name)
    for mine, theirs in zip(rows(one), rows(other), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_features_on_disk_teach_what_their_model_teaches(world, tmp_path):
    options = ["--loss", "distill", "weighted", "--steps", "3", *WHOLE]
    taught(world, tmp_path / "model", "teacher", *options)
    taught(world, tmp_path / "disk", "features", *options)
    assert_near(tmp_path / "model", tmp_path / "disk")


@pytest.mark.slow
@pytest.mark.parametrize("by", ["teacher", "features"])
def test_a_taught_run_goes_on_exactly_and_with_no_other_teacher(by, world, tmp_path, monkeypatch):
    options = ["--loss", "softmax", "distill", "--steps", "6", "--save-every", "2"]
    taught(world, tmp_path / "whole", by, *options)
    limit, steps = step._limit_scale, []

    def stop(parts):
        steps.append(limit(parts))
        if len(steps) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(step, "_limit_scale", stop)
    shutil.copytree(world, tmp_path / "world")
    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path / "world", tmp_path / "cut", by, *options)
    monkeypatch.setattr(step, "_limit_scale", limit)
    shutil.copytree(tmp_path / "cut", tmp_path / "other")
    taught(tmp_path / "world", tmp_path / "cut", by, *options)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")
    teacher = create_encoder(read_config("tiny"))
    save_encoder(teacher, tmp_path / "world" / "teacher")
    if by == "features":
        sources = (str(tmp_path / "world" / name) for name in ("teacher", "shards"))
        embed(*sources, tmp_path / "world" / "features", overwrite=True)
    with pytest.raises(UserError, match="is no longer the one that the run began with"):
        taught(tmp_path / "world", tmp_path / "other", by, *options)


def test_a_teacher_that_none_can_learn_from_is_refused_before_a_folder_is_made(world, tmp_path):
    cases = [
        ("teacher", ["--loss", "softmax"], "The loss softmax cannot use teacher"),
        ("shards", ["--loss", "distill"], "holds no checkpoint"),
        ("vit.json", ["--loss", "distill"], "is a file, not a model"),
        ("nothing", ["--loss", "distill"], "There is no model"),
    ]
    for by, options, message in cases:
        with pytest.raises(UserError, match=message):
            taught(world, tmp_path / "run", by, *options, "--steps", "1")
    with pytest.raises(UserError, match="distill needs teacher, which --teacher gives"):
        train(tmp_path / "run", world / "shards", "--loss", "distill", "--steps", "1")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "pieces"),
    [("teacher", []), ("teacher", ["--image-piece", "5", "--text-piece", "7"]), ("features", [])],
)
def test_processes_are_taught_as_one_process_is(by, pieces, world, tmp_path):
    options = ["--loss", "distill", "weighted(frozen='text')", "--steps", "3"]
    taught(world, tmp_path / "one", by, *options)
    options += ["--teacher", str(world / by), "--model.name", str(world / "vit.json")]
    options += ["--precision", "fp32", "--optimizer.warmup", "1 steps"]
    options += ["--data.batch-size", "24", "--log-every", "1"]
    ran = launch(2, tmp_path / "two", world / "shards", *options, *pieces)
    assert ran.returncode == 0, ran.stderr
    assert_near(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_student_is_validated_and_learns_from_a_teacher_that_knows(world, tmp_path):
    train(tmp_path / "teacher", world / "shards", "--steps", "60")
    options = ["--loss", "distill", "--teacher", str(tmp_path / "teacher"), "--steps", "80"]
    options += ["--model.name", str(world / "vit.json")]
    found = train(
        tmp_path / "student", world / "shards", *options, "--data.validation", str(world / "shards")
    )
    figures = found["metrics"]
    assert "validation/loss" not in figures, "the teacher sees only what is trained on"
    assert figures["validation/retrieval/image_to_text/recall@1"] > 0.9
