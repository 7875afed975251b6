"""A teacher sees what the student sees, at its own size and by its own tokenizer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests_support import pairs
from training_support import VIT

from data_pipelines.augment import Augmentation
from data_pipelines.captions import CaptionChoice
from data_pipelines.decode import training_views
from data_pipelines.embed import embed
from data_pipelines.loader import Loader
from data_pipelines.plan import Plan, Row, sample_seed
from data_pipelines.reader import Reader
from data_pipelines.shards import open_shards, write_shards
from training.compute.accumulate import Pieces
from training.teachers import Teacher, check_features, open_teacher
from vlp.encoder import create_encoder
from vlp.errors import UserError
from vlp.features import open_features

OPTIONS = Augmentation(scale=(0.4, 1.0), flip=0.5, hue=0.1, rotate=10)


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(1)
    return create_encoder({"model_cfg": VIT})


def first(shards, student, workers=0, **changes):
    """Return the first batch of 16, two captions and two views of each sample."""
    found = open_shards(shards)
    reader = Reader(
        sources=[found],
        plan=Plan([Row(found.counts, 0)], 16),
        tokenizer=student.tokenizer,
        image_size=student.image_size,
        augmentation=OPTIONS,
        captions=CaptionChoice.parse("txt:1 colour:1"),
        image_views=2,
        text_views=2,
    )
    loader = Loader(replace(reader, **changes), workers=workers)
    return next(loader.batches(0))


def test_the_teacher_sees_the_students_crop_and_caption(shards, student, model, encoder):
    teacher = open_teacher(str(model), torch.device("cpu"))
    plain = first(shards, student)
    batch, again = (first(shards, student, workers, teacher=teacher.input) for workers in (0, 2))
    for name, value in plain._asdict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(batch, name)), "a teacher changes nothing else"
    assert torch.equal(batch.teacher_images, again.teacher_images)
    assert torch.equal(batch.teacher_tokens, again.teacher_tokens)
    pictures, tokens = batch.teacher_images, batch.teacher_tokens
    assert pictures is not None
    assert tokens is not None
    assert pictures.shape == (16, 3, 48, 48)
    assert tokens.shape == (16, 24)
    samples = {sample.key: sample for sample in pairs(64)}
    for row, key in enumerate(batch.keys):
        shard = f"0/{int(key) // 25:06d}.tar"
        seed = sample_seed(0, 0, shard, key)
        assert seed == batch.seed[row]
        rng, draws = np.random.default_rng([seed, 0]), np.random.default_rng(seed)
        (seen,) = training_views(samples[key].image, [(48, 48)], OPTIONS, [rng])
        assert torch.equal(pictures[row], seen)
        caption = CaptionChoice.parse("txt:1 colour:1").draw(samples[key], draws)
        assert torch.equal(batch.tokens[row], student.tokenizer([caption])[0])
        assert torch.equal(tokens[row], encoder.tokenizer([caption])[0])


def test_features_are_those_of_the_model_one_by_one_and_in_pieces(shards, student, model, encoder):
    teacher = open_teacher(str(model), torch.device("cpu"))
    batch = first(shards, student, teacher=teacher.input)
    taught = teacher(batch, Pieces())
    assert taught.scale == pytest.approx(encoder.logit_scale.exp().item())
    assert batch.teacher_images is not None
    assert batch.teacher_tokens is not None
    for row in range(16):
        alone = encoder(batch.teacher_images[row, None], batch.teacher_tokens[row, None])
        torch.testing.assert_close(taught.image[row], alone.image[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(taught.text[row], alone.text[0], atol=1e-5, rtol=0)
    pieces = teacher(batch, Pieces(3, 5))
    torch.testing.assert_close(pieces.image, taught.image, atol=1e-5, rtol=0)
    torch.testing.assert_close(pieces.text, taught.text, atol=1e-5, rtol=0)


def test_a_teacher_of_the_students_size_takes_the_students_pictures(shards, student):
    teacher = Teacher(name="itself", identity="", scale=1.0, encoder=student.eval())
    batch = first(shards, student, teacher=teacher.input)
    assert batch.teacher_images is None
    wanted = student(batch.images, batch.tokens)
    torch.testing.assert_close(teacher(batch, Pieces()).image, wanted.image)


def test_a_run_does_not_go_on_with_another_teacher():
    one, other = (Teacher(name=name, identity=name, scale=None) for name in "ab")
    one.load_state_dict(one.state_dict())
    with pytest.raises(UserError, match="The teacher b is no longer the one"):
        other.load_state_dict(one.state_dict())


@pytest.fixture
def folder(shards, model, tmp_path):
    """Return the features of the shards, whose first sample has NaN and whose second 0."""
    embed(str(model), str(shards), tmp_path / "features")
    path = tmp_path / "features" / "img_emb" / "img_emb_0.npy"
    rows = np.load(path)
    rows[0], rows[1] = np.nan, 0
    np.save(path, rows)
    return tmp_path / "features"


def test_features_on_disk_are_those_of_the_sample_and_bad_ones_a_fault(shards, student, folder):
    features, captions = open_features(folder), CaptionChoice.parse("txt")
    found = open_shards(shards)
    reader = Reader(
        sources=[found],
        plan=Plan([Row(found.counts, 0)], 64),
        tokenizer=student.tokenizer,
        image_size=(32, 32),
        augmentation=OPTIONS,
        captions=captions,
        features=features,
    )
    loaders = [Loader(reader, workers=workers, max_bad=0.1) for workers in (0, 2)]
    batch, again = (next(loader.batches(0)) for loader in loaders)
    assert batch.keys == again.keys
    assert torch.equal(batch.teacher_features, again.teacher_features)
    assert not {"00000", "00001"} & set(batch.keys)
    fault = loaders[0].faults().as_dict()["the teacher's features are not finite, or 0"]
    assert fault["count"] == 2
    stored = [np.load(folder / name / f"{name}_0.npy") for name in ("img_emb", "text_emb")]
    taught = open_teacher(str(folder), torch.device("cpu"))(batch, Pieces())
    for row, key in enumerate(batch.keys):
        np.testing.assert_allclose(taught.image[row], stored[0][int(key)], atol=1e-6)
        np.testing.assert_allclose(taught.text[row], stored[1][int(key)], atol=1e-6)


def test_features_of_another_caption_are_refused(shards, student, folder):
    with pytest.raises(UserError, match=r"another caption of \d+ than 'a?.*--data.captions txt"):
        first(shards, student, features=open_features(folder))


def test_samples_without_features_are_counted_before_a_run_begins(tmp_path, folder, capsys):
    write_shards(pairs(80), tmp_path / "more", samples_per_shard=25)
    found = [open_shards(tmp_path / "more")]
    features, plan = open_features(folder), Plan([Row(found[0].counts, 0)], 16)
    with pytest.raises(UserError, match=r"16 of 80 samples have no .* such as 00064 of 000002.tar"):
        check_features(features, found, plan, max_bad=0.05)
    check_features(features, found, plan, max_bad=0.2)
    assert "16 of 80 samples have no features" in capsys.readouterr().err
    copies = [np.arange(start, start + count) < 64 for start, count in ((0, 25), (25, 25))]
    copies += [np.arange(50, 75) < 64, np.zeros(5, bool)]
    kept = Plan([Row(found[0].counts, 0, copies=[own.astype(int) for own in copies])], 16)
    check_features(features, found, kept, max_bad=0.0)
