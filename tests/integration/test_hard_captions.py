"""Captions that nearly fit, from the loader's workers into the loss."""

import json
import math
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from training_support import VIT, colours, differences, launch, rows, train, weights

from data_pipelines import toy
from data_pipelines.curation.files import forget
from data_pipelines.loader import Loader
from data_pipelines.shards import write_shards
from training import step
from training.config import TrainConfig
from training.options import DataConfig
from training.reading import build_reader, open_hard_captions, open_sources
from vlp import cli
from vlp.errors import Stopped, UserError
from vlp.types import PADDING

NEGATIVES = ("replace_words(kind='attribute')", "swap_words(vocabulary='english', k=2)")
RISING = ("--negatives-share", "0 -> 1 over 4 steps")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    samples = toy.draw_training(96, 0, shares={"boilerplate_caption": 0.1})
    write_shards(samples, folder, samples_per_shard=50)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    path = tmp_path_factory.mktemp("vit") / "vit.json"
    text = VIT["text_cfg"] | {"context_length": 24}
    path.write_text(json.dumps(VIT | {"text_cfg": text}))
    return path


def loader_of(data, encoder, *, workers=0, process=0, num_processes=1, **more) -> Loader:
    options = DataConfig(shards=(str(data),), batch_size=12)
    config = TrainConfig(data=options, negatives=NEGATIVES, **more)
    sources, plan = open_sources(config)
    hard = open_hard_captions(config, config.run_length(plan.num_samples))
    reader = build_reader(
        config, sources, plan, encoder.tokenizer, encoder.image_size, hard_captions=hard
    )
    return Loader(reader, process=process, num_processes=num_processes, workers=workers)


def first(loader, count, seen=0):
    batches = loader.batches(seen)
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found


def hard(batch):
    """Return the ids and the groups of a batch's hard captions."""
    assert batch.hard_tokens is not None
    assert batch.hard_group is not None
    return batch.hard_tokens, batch.hard_group


def test_hard_captions_are_the_same_for_any_workers_and_processes(data, encoder):
    whole = first(loader_of(data, encoder), 3)
    assert whole[0].hard_tokens.shape == (12, 3, 24)
    assert len({tuple(batch.hard_group.flatten().tolist()) for batch in whole}) == 3
    for one, other in zip(whole, first(loader_of(data, encoder, workers=2), 3), strict=True):
        assert torch.equal(one.hard_tokens, other.hard_tokens)
        assert torch.equal(one.hard_group, other.hard_group)
    for rank in range(2):
        own = first(loader_of(data, encoder, process=rank, num_processes=2), 3)
        for one, other in zip(whole, own, strict=True):
            for every, mine in zip(hard(one), hard(other), strict=True):
                assert torch.equal(every[rank::2], mine)
    third = first(loader_of(data, encoder), 1, seen=24)[0]
    assert torch.equal(hard(third)[0], hard(whole[2])[0])


def test_no_hard_caption_is_the_caption_of_its_pair_and_each_says_whose_it_would_be(
    encoder, tmp_path
):
    loader, met = loader_of(colours(tmp_path / "shards", 96), encoder), 0
    for batch in first(loader, 8):
        tokens, group = hard(batch)
        is_caption = group != PADDING
        assert not (is_caption & (group == batch.group[:, None])).any()
        assert not (is_caption & (tokens == batch.tokens[:, None]).all(2)).any()
        met += int(torch.isin(group[is_caption], batch.group).sum())
    assert met, "a hard caption was the caption of another pair, and had its group"
    assert loader.tally.hard_captions == loader.tally.reads == 96


def test_samples_whose_caption_cannot_be_changed_are_counted(data, encoder):
    loader = loader_of(data, encoder)
    found = first(loader, 8)
    without = sum(int((batch.hard_group == PADDING).all(1).sum()) for batch in found)
    made = sum(int((batch.hard_group != PADDING).sum()) for batch in found)
    assert 5 < without < 20
    tally = loader.tally
    assert (tally.hard_due, tally.hard_without, tally.hard_captions) == (96, without, made)


def test_without_groups_by_caption_a_hard_caption_is_of_none(data, encoder):
    loader = loader_of(data, encoder)
    maker = replace(loader.reader.hard_captions, names_group=False)
    loader.reader = replace(loader.reader, hard_captions=maker, group="none")
    groups = first(loader, 1)[0].hard_group
    assert set(groups.flatten().tolist()) == {-1, PADDING}


def test_the_share_of_samples_with_hard_captions_changes_and_may_come_to_none(data, encoder):
    found = first(loader_of(data, encoder, negatives_share="1 -> 0 over 60 samples"), 8)
    assert [batch.hard_tokens is None for batch in found] == [False] * 5 + [True] * 3
    shares = [(b.hard_group != PADDING).any(1).float().mean().item() for b in found[:5]]
    assert shares[0] > shares[2] > shares[4]
    every = first(loader_of(data, encoder), 2)
    (tokens, group), (whole, _) = hard(found[1]), hard(every[1])
    assert torch.equal(tokens[group != PADDING], whole[group != PADDING])


@pytest.mark.slow
def test_a_run_with_hard_captions_that_was_stopped_equals_one_that_was_not(
    data, tmp_path, monkeypatch
):
    options = ["--negatives", *NEGATIVES, *RISING, "--steps", "6", "--save-every", "0"]
    told = train(tmp_path / "whole", data, *options)
    assert told["hard_captions"] > 0
    assert 0 < told["without_hard_captions"] < 144
    steps, limit = [], step._limit_scale

    def stop(parts):
        limit(parts)
        steps.append(0)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(step, "_limit_scale", stop)
    with pytest.raises(Stopped):
        train(tmp_path / "cut", data, *options)
    again = train(tmp_path / "cut", data, *options)
    assert differences(tmp_path / "whole", tmp_path / "cut") == []
    assert again["without_hard_captions"] == told["without_hard_captions"]
    with pytest.raises(UserError, match="written with another config: negatives"):
        train(tmp_path / "cut", data, *options, "--negatives", "add_words")


@pytest.mark.slow
def test_hard_captions_are_more_negatives_and_pieces_change_nothing(data, vit, tmp_path):
    usual = ["--model.name", str(vit), "--steps", "2", "--precision", "fp32"]
    usual += ["--negatives", *NEGATIVES]
    train(tmp_path / "one", data, *usual)
    train(tmp_path / "many", data, *usual, "--image-piece", "5", "--text-piece", "7")
    one, many = weights(tmp_path / "one"), weights(tmp_path / "many")
    for name in one:
        torch.testing.assert_close(many[name], one[name], atol=2e-5, rtol=1e-4)
    assert 0 < rows(tmp_path / "one")[0]["batch/hard_above_match"] < 1
    # Of features that can hardly be told apart, an image has 24 texts and some 50 more.
    assert rows(tmp_path / "one")[0]["loss"] > math.log(24) + 0.4


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_vocabulary_of_the_same_name(data, tmp_path):
    words = tmp_path / "words.json"
    words.write_text('{"colour": ["red", "blue"]}')
    options = ["--steps", "2", "--negatives", f"replace_words(vocabulary={str(words)!r})"]
    train(tmp_path / "run", data, *options, "--save-every", "1")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_0000002")
    words.write_text('{"colour": ["red", "green"]}')
    forget()
    with pytest.raises(UserError, match=r"nor what --data\.mined or --negatives go by"):
        train(tmp_path / "run", data, *options, "--save-every", "1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", ["softmax", "sigmoid", "matryoshka(loss='hard_negative', dims=(8,))"]
)
def test_two_processes_train_with_hard_captions_as_one_does(loss, data, vit, tmp_path):
    options = ["--model.name", str(vit), "--steps", "4", "--precision", "fp32", "--loss", loss]
    options += ["--negatives", *NEGATIVES, *RISING, "--optimizer.warmup", "1 steps"]
    train(tmp_path / "one", data, *options)
    options += ["--data.batch-size", "24", "--log-every", "1"]
    ran = launch(2, tmp_path / "two", data, *options, "--text-piece", "11")
    assert ran.returncode == 0, ran.stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:  # of rare words' embeddings, Adam makes the most of what rounding left
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=1e-4)
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss", "uniformity"], "cannot use hard_text. Leave out --negatives, or add a loss"),
        (["--loss", "weighted"], "cannot use hard_text. Leave out --negatives"),
        (["--negatives-share", "soon"], "negatives-share is 'soon'. Write a share from 0 to 1"),
        (["--negatives-share", "0 -> 1 over soon"], "The time in negatives-share is 'soon'"),
        (["--negatives", "swop_words"], "no negative called 'swop_words'. Did you mean swap_words"),
    ],
)
def test_a_wrong_option_ends_the_run_with_what_may_be_written(options, message, data, tmp_path):
    with pytest.raises(UserError) as error:
        train(tmp_path / "run", data, "--steps", "2", "--negatives", "add_words", *options)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_share_of_nothing_is_refused(data, tmp_path):
    with pytest.raises(UserError, match='Write --negatives "swap_words", too'):
        train(tmp_path / "run", data, "--negatives-share", "0.5")


def test_a_dry_run_shows_hard_captions_and_counts_what_they_cost(data, tmp_path, capsys):
    usual = ["train", "toy", "--data.shards", str(data), "--data.batch-size", "24", "--out"]
    plain = cli.run([*usual, str(tmp_path / "run"), "--dry-run"])
    hard = [*usual, str(tmp_path / "run"), "--dry-run", "--negatives", *NEGATIVES]
    told = cli.run(hard)
    assert told["memory_bytes"]["activations"] > plain["memory_bytes"]["activations"]
    shown, said = told["hard_captions"], capsys.readouterr().out
    assert len(shown) == 6
    assert "Hard captions:" in said
    made = [text for own in shown.values() for text in own]
    assert made
    assert all(text in said for text in made)
