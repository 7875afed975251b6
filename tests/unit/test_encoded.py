"""Filters that look at features: clusters near a target set."""

import numpy as np
import pytest
from curation_support import kept, stored_features, unit_rows
from tests_support import pairs

from data_pipelines.curation.candidates import Candidate
from data_pipelines.filters.image_clusters import ImageClusters
from vlp.errors import UserError
from vlp.sample import Sample


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
    from vlp.index import kmeans

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
    from data_pipelines.curation.candidates import hash64

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
    from data_pipelines.embed import embed_shards
    from data_pipelines.shards import write_shards

    samples = pairs(6)
    write_shards(samples, tmp_path / "shards")
    embed_shards(str(model), str(tmp_path / "shards"), tmp_path / "features")
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
