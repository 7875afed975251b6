"""Nearest neighbours, clusters and near-duplicate codes, against naive second implementations."""

import numpy as np
import pytest

from vlp.errors import UserError
from vlp.index import assign, hamming_pairs, kmeans, neighbours
from vlp.index import exact as index


def unit_rows(count, dim=16, seed=0):
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def similar_codes(count, num_bytes, seed=0):
    """Return codes of which many are others with up to 40 bits flipped, and some are equal."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (count, num_bytes * 8), dtype=np.uint8)
    for row in range(1, count, 2):
        bits[row] = bits[rng.integers(0, row)]
        flipped = rng.choice(bits.shape[1], rng.integers(0, min(40, bits.shape[1])), replace=False)
        bits[row, flipped] ^= 1
    return np.packbits(bits, axis=1)


def naive_pairs(codes, radius):
    """Return every pair within the radius, less those of any but the first of equal codes."""
    bits = np.unpackbits(codes, axis=1)
    pairs, first = set(), {}
    for row, code in enumerate(map(bytes, codes)):
        if code in first:
            pairs.add((first[code], row))
            continue
        for other in first.values():
            if np.count_nonzero(bits[row] != bits[other]) <= radius:
                pairs.add((other, row))
        first[code] = row
    return pairs


@pytest.mark.parametrize(
    ("num_bytes", "radius"), [(32, 31), (32, 0), (32, 7), (8, 10), (2, 3), (13, 20)]
)
@pytest.mark.parametrize("look_up", [index.LOOK_UP, 0.1])
def test_pairs_of_codes_are_those_of_the_naive_loop(num_bytes, radius, look_up, monkeypatch):
    monkeypatch.setattr(index, "LOOK_UP", look_up)  # 0.1: hash tables pay for few codes, too
    codes = similar_codes(600, num_bytes)
    found = np.concatenate([*hamming_pairs(codes, radius, block=100)])
    assert found.dtype == np.int64
    pairs = list(map(tuple, found.tolist()))
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) == naive_pairs(codes, radius)
    assert any(codes[one].tobytes() == codes[other].tobytes() for one, other in pairs)


def test_hash_tables_are_used_where_there_are_many_codes():
    assert type(index._binary_index(1000, 256, 31)).__name__ == "IndexBinaryFlat"
    many = index._binary_index(10_000_000, 256, 31)
    assert type(many).__name__ == "IndexBinaryMultiHash"
    assert many.nflip == 31 // many.nhash
    assert many.nhash * many.b <= 256


def test_a_code_that_is_there_often_is_no_square_of_pairs():
    codes = np.tile(similar_codes(1, 32), (5000, 1))
    pairs = np.concatenate([*hamming_pairs(codes, 31)])
    assert pairs.tolist() == [[0, other] for other in range(1, 5000)]


def test_no_codes_make_no_pairs():
    assert sum(map(len, hamming_pairs(np.empty((0, 32), np.uint8), 31))) == 0


def test_neighbours_are_those_of_the_whole_matrix_whatever_the_blocks(monkeypatch):
    rows, queries = unit_rows(500), unit_rows(20, seed=1)
    rows[100:110] = rows[7]  # ties
    rows[300] = rows[7]
    queries[0] = rows[7]
    cosines = queries @ rows.T
    for block in (1000, 64, 3):
        monkeypatch.setattr(index, "BLOCK", block)
        scores, numbers = neighbours(queries, rows, 12)
        assert numbers[0].tolist() == [7, *range(100, 110), 300]
        expected = np.sort(cosines, axis=1)[:, ::-1][:, :12]
        np.testing.assert_allclose(scores, expected, atol=1e-6)
        np.testing.assert_allclose(np.take_along_axis(cosines, numbers, 1), scores, atol=1e-6)
    assert neighbours(queries, rows[:5], 12)[0].shape == (20, 5)


def test_assignment_is_to_the_centroid_of_the_largest_cosine(monkeypatch):
    monkeypatch.setattr(index, "BLOCK", 64)
    rows, centroids = unit_rows(500), unit_rows(9, seed=2)
    numbers, cosines = assign(rows.astype(np.float16), centroids)
    expected = rows.astype(np.float16).astype(np.float32) @ centroids.T
    assert numbers.tolist() == expected.argmax(1).tolist()
    np.testing.assert_allclose(cosines, expected.max(1), atol=1e-6)


def test_kmeans_finds_clusters_that_were_planted():
    centres = unit_rows(8, dim=32)
    planted = np.repeat(np.arange(8), 100)
    rows = centres[planted] + 0.05 * np.random.default_rng(1).normal(size=(800, 32))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    centroids = kmeans(rows, 8, seed=3)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    numbers, cosines = assign(rows, centroids)
    found = {tuple(sorted(set(numbers[planted == n].tolist()))) for n in range(8)}
    assert len(found) >= 6  # from one draw of the centroids, a pair may share a cluster
    assert cosines.mean() > 0.8


def test_kmeans_follows_from_its_seed_and_learns_from_a_sample(tmp_path):
    rows = unit_rows(3000)
    one = kmeans(rows, 5, seed=1, sample=400)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert np.array_equal(one, kmeans(mapped, 5, seed=1, sample=400))
    assert not np.array_equal(one, kmeans(rows, 5, seed=2, sample=400))
    drawn = np.sort(np.random.default_rng(1).choice(3000, 400, replace=False))
    alone = rows.copy()
    alone[np.setdiff1d(np.arange(3000), drawn)] = 0  # what was not drawn is not looked at
    assert np.array_equal(one, kmeans(alone, 5, seed=1, sample=400))


def test_more_clusters_than_features_are_refused_and_as_many_are_not():
    with pytest.raises(UserError, match="11 clusters of 10 features: ask for 1 to 10"):
        kmeans(unit_rows(10), 11)
    numbers, cosines = assign(unit_rows(10), kmeans(unit_rows(10), 10))
    assert sorted(numbers.tolist()) == [*range(10)]
    np.testing.assert_allclose(cosines, 1, atol=1e-6)
