"""Filters that look at features: clusters near a target set."""

import shutil

import numpy as np
import pytest
from curation_support import kept, stored_features, unit_rows
from tests_support import pairs

from data_pipelines.curation.candidates import Candidate, hash64
from data_pipelines.curation.encoded import unit
from data_pipelines.engine import Engine
from data_pipelines.filters import clip_cov
from data_pipelines.filters.clip_cov import ClipCov
from data_pipelines.filters.image_clusters import ImageClusters
from vlp.errors import UserError
from vlp.index import assign, kmeans
from vlp.sample import Sample

INLINE = Engine(kind="inline")


@pytest.fixture
def blobs():
    """Four directions with 40 features about each, and the number of the direction of each."""
    centres = unit_rows(4, seed=1)
    which = np.arange(160) % 4
    rows = centres[which] + 0.05 * unit_rows(160, seed=2)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), which


def candidates(count):
    return [Candidate.of(Sample(str(n), b"x", "a red square", {})) for n in range(count)]


def test_what_stays_is_in_a_cluster_that_a_target_picture_is_nearest_to(tmp_path, blobs):
    rows, which = blobs
    features = stored_features(tmp_path / "pool", rows)
    target = stored_features(tmp_path / "target", rows[which == 2])
    part = ImageClusters(features=features, target=target, clusters=12)
    scores = part.score(candidates(160))
    (mask,) = kept(part, scores)
    assert mask == (which == 2).tolist()


def naive_is_near(rows, target, clusters):
    """Compare each feature with each centroid, in loops."""
    centroids = kmeans(rows, clusters)
    nearest = [max(range(clusters), key=lambda c: float(row @ centroids[c])) for row in rows]
    near = {max(range(clusters), key=lambda c: float(row @ centroids[c])) for row in target}
    return [cluster in near for cluster in nearest]


def test_clusters_agree_with_naive_loops_whatever_the_order_of_shards(tmp_path):
    rows, target = unit_rows(200), unit_rows(5, seed=3)
    part = ImageClusters(
        features=stored_features(tmp_path / "pool", rows),
        target=stored_features(tmp_path / "target", target),
        clusters=12,
    )
    scores = part.score(candidates(200))
    keys = [str(n) for n in range(200)]
    (whole,) = kept(part, scores, keys=[keys])
    order = np.argsort(np.array([hash64(key) for key in keys], np.uint64))
    halved = np.stack([np.frombuffer(scores[n], "<f2").astype(np.float32) for n in order])
    halved /= np.linalg.norm(halved, axis=1, keepdims=True)
    expected = naive_is_near(halved, target, 12)
    assert [whole[n] for n in order] == expected
    assert 0 < sum(whole) < 200
    swapped = kept(part, scores[90:], scores[:90], keys=[keys[90:], keys[:90]])
    assert swapped[1] + swapped[0] == whole


def test_only_what_is_left_is_clustered(tmp_path, blobs):
    rows, which = blobs
    target = stored_features(tmp_path / "target", rows[:1])
    part = ImageClusters(features=stored_features(tmp_path / "pool", rows), target=target)
    scores = part.score(candidates(160))
    (mask,) = kept(part, scores, left=[(which != 0).tolist()])
    assert part.clusters is None
    assert mask == (which != 0).tolist()  # 120 samples are one cluster of 128
    assert kept(part, scores, left=[[False] * 160]) == [[False] * 160]


def test_a_model_encodes_as_embed_does(model, tmp_path):
    from data_pipelines.embed import embed
    from data_pipelines.shards import write_shards

    samples = pairs(6)
    write_shards(samples, tmp_path / "shards")
    embed(str(model), str(tmp_path / "shards"), tmp_path / "features", engine=INLINE)
    target = str(tmp_path / "features")
    by_model = ImageClusters(model=str(model), target=target)
    by_features = ImageClusters(features=target, target=target)
    given = [Candidate.of(one) for one in samples]
    one, other = (
        np.stack([np.frombuffer(row, "<f2") for row in part.score(given)])
        for part in (by_model, by_features)
    )
    np.testing.assert_allclose(one, other, atol=2e-3)
    assert by_model.identity() != by_features.identity()


def naive_clip_cov(image, text, class_of, label, count, refresh):
    """Pick one after the other, with all similarities of a class in a matrix (clip_core.ipynb)."""
    s = np.maximum(image @ text.T, 0)
    worth, cross = np.zeros(len(image)), np.zeros(len(image))
    for n in set(class_of):
        own = np.flatnonzero(class_of == n)
        centre_i, centre_t = image[own].mean(0), text[own].mean(0)
        for i in own:
            cross[i] = (s[i, own].sum() + s[own, i].sum()) / len(own)
            to_centres = image[i] @ centre_t / np.linalg.norm(centre_t)
            to_centres += text[i] @ centre_i / np.linalg.norm(centre_i)
            worth[i] = cross[i] + 2 * image[i] @ text[i] + label[i] / 2 - to_centres
    picked, new = [], {n: [] for n in set(class_of)}
    while len(picked) < count:
        best = max((i for i in range(len(image)) if i not in picked), key=lambda i: worth[i])
        picked.append(best)
        n = class_of[best]
        new[n].append(best)
        if len(new[n]) == refresh:
            own = np.flatnonzero(class_of == n)
            taken = [i for i in picked if class_of[i] == n]
            for i in own:
                worth[i] -= sum(s[i, j] + s[j, i] for j in new[n]) / len(own)
                worth[i] -= (cross[taken].sum() + label[new[n]].sum() / 2) / len(own)
            new[n] = []
    return set(picked)


@pytest.mark.parametrize("tile", [2048, 16])
def test_clip_cov_agrees_with_a_naive_greedy_choice(tmp_path, monkeypatch, tile):
    monkeypatch.setattr(clip_cov, "REFRESH", 5)
    monkeypatch.setattr(clip_cov, "TILE", tile)
    rows = unit_rows(120)
    part = ClipCov(features=stored_features(tmp_path / "f", rows), share=0.3, classes=3)
    scores = part.score(candidates(120))
    (mask,) = kept(part, scores)
    order = np.argsort(np.array([hash64(str(n)) for n in range(120)], np.uint64))
    pairs = np.stack([np.frombuffer(score, "<f2").astype(np.float32) for score in scores])
    image, text = unit(pairs[order, :8]), unit(pairs[order, 8:])
    class_of, label = assign(text, kmeans(text, 3))
    assert len(set(class_of)) == 3
    expected = naive_clip_cov(image, text, class_of, label, 36, 5)
    assert {int(np.flatnonzero(order == n)[0]) for n in np.flatnonzero(mask)} == expected
    assert sum(mask) == 36


def test_clip_cov_parts_a_class_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_cov, "MOST", 30)
    part = ClipCov(features=stored_features(tmp_path / "f", unit_rows(100)), share=0.2)
    scores = part.score(candidates(100))
    keys = [[str(n) for n in range(100)]]
    (whole,) = kept(part, scores, keys=keys)
    halves = kept(part, scores[60:], scores[:60], keys=[keys[0][60:], keys[0][:60]])
    assert sum(whole) == 20
    assert halves[1] + halves[0] == whole
    assert kept(part, scores, left=[[False] * 100]) == [[False] * 100]


def test_a_target_needs_no_text_features_and_its_keys_may_repeat(tmp_path):
    rows = unit_rows(40)
    target = stored_features(tmp_path / "target", rows[:2])
    shutil.rmtree(tmp_path / "target" / "text_emb")
    shutil.rmtree(tmp_path / "target" / "metadata")
    part = ImageClusters(features=stored_features(tmp_path / "pool", rows), target=target)
    part.identity()
    assert kept(part, part.score(candidates(40))) == [[True] * 40]
    shutil.rmtree(tmp_path / "target" / "image_emb")
    with pytest.raises(UserError, match="lacks img_emb"):
        kept(part, part.score(candidates(40)))


def test_features_of_another_model_are_refused(tmp_path):
    rows = unit_rows(4)
    pool = stored_features(tmp_path / "pool", rows, model_hash="a")
    other = stored_features(tmp_path / "other", rows, model_hash="b")
    narrow = stored_features(tmp_path / "narrow", unit_rows(4, dim=4))
    with pytest.raises(UserError, match="of another model than"):
        ImageClusters(features=pool, target=other).identity()
    part = ImageClusters(features=pool, target=narrow)
    part.identity()
    with pytest.raises(UserError, match="have 4 numbers, those of the samples 8"):
        kept(part, part.score(candidates(4)))
    with pytest.raises(UserError, match="Write either model='run/' or features="):
        ImageClusters(target=pool)
