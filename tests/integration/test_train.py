"""A run from recipe to checkpoint: it learns, goes on where it was stopped, and splits evenly."""

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile

import pytest
import torch
from tests_support import pairs
from training_support import colours, one_thread, rows, spoil, train, weights

from data_pipelines.shards import write_shards
from training import loop
from vlp import cli
from vlp.errors import UserError
from vlp.types import Sample


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


@pytest.fixture
def spoiled(tmp_path):
    """Return shards of 96 samples, 12 of which have half an image."""
    return spoil(tmp_path / "spoiled", 96, every=8)


def faults(run) -> dict:
    return json.loads((run / "faults.json").read_text())


def test_a_short_run_on_bad_samples_stops_at_its_end_and_may_be_gone_on_with(spoiled, tmp_path):
    options = ["--steps", "4"]
    with pytest.raises(UserError, match=r"of 96 samples cannot be read .*at most 5% may") as error:
        train(tmp_path / "run", spoiled, *options)
    assert faults(tmp_path / "run")["image ends early"]["count"] == 12
    assert (tmp_path / "run" / "checkpoints" / "step_0000004").is_dir()
    advised = re.findall(r"--data.max-bad (0\.\d+)", str(error.value))
    result = train(tmp_path / "run", spoiled, *options, "--data.max-bad", *advised)
    assert result["faults"]["image ends early"]["count"] == 12
    assert result["substituted"] >= 12


def test_the_ledger_of_a_run_that_goes_on_is_that_of_one_that_never_stopped(
    spoiled, tmp_path, monkeypatch
):
    options = ["--steps", "10", "--save-every", "3", "--data.max-bad", "0.3"]
    whole = train(tmp_path / "whole", spoiled, *options)
    limit, steps = loop._limit_scale, []

    def stop(parts):
        steps.append(limit(parts))
        if len(steps) == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_limit_scale", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", spoiled, *options)
    monkeypatch.setattr(loop, "_limit_scale", limit)
    assert faults(tmp_path / "cut")
    spoiled.rename(tmp_path / "moved")
    (tmp_path / "spoiled").symlink_to(tmp_path / "moved")
    cut = train(tmp_path / "cut", spoiled, *options)
    for name in ("faults", "substituted", "captions_cut"):
        assert cut[name] == whole[name]
    assert faults(tmp_path / "cut") == faults(tmp_path / "whole") == whole["faults"]


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
    torch.testing.assert_close(second["visual.head.proj.weight"], first["visual.head.proj.weight"])


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


def test_a_run_never_replaces_what_it_reads(data, tmp_path):
    mine = colours(tmp_path / "mine", 48)
    (mine / "config.json").write_text('{"command": "filter", "config": {}}')
    with pytest.raises(UserError, match="is the input"):
        train(mine, mine, "--overwrite")
    assert list(mine.glob("*.tar"))


def test_a_finished_run_still_tells_its_figures(data, tmp_path):
    first = train(tmp_path / "run", data, "--steps", "2")
    again = train(tmp_path / "run", data, "--steps", "2")
    assert again["metrics"]["loss"] == first["metrics"]["loss"]


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    with pytest.raises(UserError, match=r"The loss is (nan|inf) at step"):
        train(tmp_path / "run", data, "--optimizer.learning-rate", "1e30", "--steps", "30")


def test_validation_shards_without_captions_are_refused_before_the_run(data, tmp_path):
    samples = [Sample(s.key, s.image, "", {"cls": 1}) for s in pairs(8)]
    write_shards(samples, tmp_path / "classes")
    shards = sorted((tmp_path / "classes").glob("*.tar"))
    assert shards
    strip_captions(shards[0])
    with pytest.raises(UserError, match="have no captions"):
        train(tmp_path / "run", data, "--data.validation", str(tmp_path / "classes"))


def strip_captions(shard) -> None:
    """Rewrite a shard so that it holds classes and no captions, as CLIP_benchmark's do."""
    with tarfile.open(shard) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar if m.name.endswith("png")}
    with tarfile.open(shard, "w") as tar:
        for name, data in files.items():
            for member, content in ((name, data), (name.replace("png", "cls"), b"1")):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_a_run_goes_on_with_other_workers_but_not_with_another_batch(data, tmp_path):
    train(tmp_path / "whole", data, "--steps", "6", "--save-every", "3")
    train(tmp_path / "cut", data, "--steps", "6", "--save-every", "3")
    newest = sorted((tmp_path / "cut" / "checkpoints").glob("step_*"))[-1]
    shutil.rmtree(newest)
    train(tmp_path / "cut", data, "--steps", "6", "--save-every", "2", "--data.workers", "0")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    with pytest.raises(UserError, match=r"optimizer.warmup was"):
        train(tmp_path / "cut", data, "--steps", "6", "--optimizer.warmup", "50%")


def test_keep_lists_go_with_their_sources(data, tmp_path):
    kept, keep = str(tmp_path / "kept"), "caption_words(min=3)"
    cli.run(["filter", str(data), kept, "--keep-list", "--quiet", "--keep", keep])
    twice = ["--data.shards", str(data), str(data)]
    assert train(tmp_path / "run", data, "--steps", "2", "--data.keep", kept)["steps"] == 2
    with pytest.raises(UserError, match=r"1 keep-lists for 2 sources"):
        train(tmp_path / "two", data, "--steps", "2", "--data.keep", kept, *twice)
    with pytest.raises(UserError, match=r"do not go with --data.resample"):
        train(tmp_path / "drawn", data, "--steps", "2", "--data.keep", kept, "--data.resample")
    with pytest.raises(UserError, match=r"is named twice"):
        train(tmp_path / "twice", data, "--steps", "2", *twice)
