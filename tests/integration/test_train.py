"""A run from recipe to checkpoint: it learns, goes on where it was stopped, and splits evenly."""

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import time
from multiprocessing import active_children

import pytest
import torch
from tests_support import pairs
from training_support import colours, one_thread, rows, spoil, train, weights

from data_pipelines.shards import write_shards
from training import step
from vlp import cli
from vlp.errors import UserError
from vlp.types import Sample


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("data") / "shards", 96)


@pytest.mark.parametrize("loss", ["softmax", pytest.param("sigmoid", marks=pytest.mark.slow)])
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "memory",
    [
        [],
        pytest.param(
            ["--memory", "60", "--memory-momentum", "0.9", "--optimizer.warmup", "2 steps"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_that_goes_on_equals_one_that_never_stopped(memory, data, tmp_path):
    options = ["--steps", "12", "--save-every", "5", *memory]
    train(tmp_path / "whole", data, *options)
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


@pytest.mark.slow
def test_the_ledger_of_a_run_that_goes_on_is_that_of_one_that_never_stopped(
    spoiled, tmp_path, monkeypatch
):
    options = ["--steps", "10", "--save-every", "3", "--data.max-bad", "0.3"]
    whole = train(tmp_path / "whole", spoiled, *options)
    limit, steps = step._limit_scale, []

    def stop(parts):
        steps.append(limit(parts))
        if len(steps) == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(step, "_limit_scale", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", spoiled, *options)
    monkeypatch.setattr(step, "_limit_scale", limit)
    assert faults(tmp_path / "cut")
    spoiled.rename(tmp_path / "moved")
    (tmp_path / "spoiled").symlink_to(tmp_path / "moved")
    cut = train(tmp_path / "cut", spoiled, *options)
    for name in ("faults", "substituted", "captions_cut"):
        assert cut[name] == whole[name]
    assert faults(tmp_path / "cut") == faults(tmp_path / "whole") == whole["faults"]


@pytest.mark.slow
def test_a_worker_that_is_killed_while_the_run_computes_ends_it_in_one_line(
    spoiled, tmp_path, monkeypatch
):
    steps, others, limit = [], set(active_children()), step._limit_scale

    def kill(parts):
        limit(parts)
        steps.append(0)
        if len(steps) == 3:
            worker = min(set(active_children()) - others, key=lambda child: child.pid)
            worker.kill()
            worker.join()
            time.sleep(0.1)  # the signal comes while the trainer is here, not while it waits

    monkeypatch.setattr(step, "_limit_scale", kill)
    options = ["--steps", "50", "--data.max-bad", "1", "--data.workers", "2"]
    with pytest.raises(UserError, match="A worker that reads samples was killed"):
        train(tmp_path / "run", spoiled, *options)
    assert faults(tmp_path / "run")


def test_a_run_goes_on_where_its_data_was_moved_to_and_on_no_other(data, tmp_path):
    train(tmp_path / "run", data, "--steps", "2")
    shutil.copytree(data, tmp_path / "moved")
    assert train(tmp_path / "run", tmp_path / "moved", "--steps", "2")["steps"] == 2
    other = colours(tmp_path / "other", 72)
    with pytest.raises(UserError, match="no longer those"):
        train(tmp_path / "run", other, "--steps", "2")


def test_a_run_is_validated_on_one_set_wherever_it_lies(data, tmp_path):
    run, usual = tmp_path / "run", ("--steps", "2", "--data.validation")
    held, other = (colours(tmp_path / name, n, first=96) for name, n in (("a", 24), ("b", 30)))
    train(run, data, *usual, str(held))
    train(run, data, "--steps", "2")  # a run may do without
    (tmp_path / "moved").mkdir()
    train(run, data, *usual, str(shutil.move(held, tmp_path / "moved")))
    with pytest.raises(UserError, match="validation shards are not those"):
        train(run, data, *usual, str(other))


STOP_AT_STEP_8 = """
import os, sys, torch
torch.set_num_threads(1)
from training import step
limit = step._limit_scale
steps = []
def stop(parts):
    limit(parts)
    steps.append(0)
    if len(steps) == 8:
        os._exit(9)
step._limit_scale = stop
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
    train(tmp_path / "run", data, "--steps", "9", "--save-every", "2", "--keep.last", "3")
    left = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["step_0000006", "step_0000008", "step_0000009"]


@pytest.mark.slow
def test_every_nth_and_the_best_checkpoint_stay(data, tmp_path):
    held_out = colours(tmp_path / "held_out", 32, first=200)
    best = "validation/loss"
    train(
        tmp_path / "run",
        data,
        *("--steps", "12", "--save-every", "1", "--validate-every", "1"),
        *("--data.validation", str(held_out)),
        *("--keep.last", "1", "--keep.every", "5", "--keep.best", best),
    )
    left = {int(p.name[5:]) for p in (tmp_path / "run" / "checkpoints").iterdir()}
    losses = {row["step"]: row[best] for row in rows(tmp_path / "run") if best in row}
    assert left == {5, 10, 12, min(losses, key=losses.get)}


@pytest.mark.slow
def test_a_best_figure_that_there_is_not_is_named(data, tmp_path, capsys):
    options = ["--steps", "1", "--data.validation", str(colours(tmp_path / "held", 24, first=96))]
    train(tmp_path / "run", data, *options, "--keep.best", "validation/los")
    assert "no figure 'validation/los'. Did you mean validation/loss" in capsys.readouterr().err


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
    with pytest.raises(UserError, match=r"10 steps in a row .* loss is (nan|inf)\. There is no"):
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


@pytest.mark.slow
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


def test_losses_that_add_up_are_logged_by_name_with_what_the_batch_showed(data, tmp_path):
    train(tmp_path / "run", data, "--steps", "2", "--loss", "softmax", "uniformity(weight=0.1)")
    for row in rows(tmp_path / "run"):
        total = row["loss/softmax"] + 0.1 * row["loss/uniformity"]
        assert row["loss"] == pytest.approx(total)
        assert 0 <= row["batch/accuracy/image_to_text"] <= 1
        assert row["batch/non_match/min"] <= row["batch/non_match/mean"]


def test_past_pairs_wait_for_the_warmup_and_are_more_negatives(data, tmp_path):
    for name, options in (("with", ["--memory", "48"]), ("without", [])):
        train(tmp_path / name, data, "--steps", "6", "--optimizer.warmup", "3 steps", *options)
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("with", "without")]
    assert losses[0][:4] == losses[1][:4], "the first step after the warm-up fills the memory"
    assert losses[0][4] > losses[1][4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.image-views", "2"], "softmax cannot use views"),
        (["--data.text-views", "2"], "softmax cannot use text_views"),
        (["--loss", "uniformity", "--memory", "8"], "uniformity cannot use past"),
        (["--image-piece", "8"], "image tower has batch norm"),
        (["--model.patch-dropout", "0.5"], "ResNet has no patches"),
    ],
)
def test_what_the_loss_or_the_tower_cannot_do_is_refused_before_the_run(
    options, message, data, tmp_path
):
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", data, *options)
    assert not (tmp_path / "run").exists()
