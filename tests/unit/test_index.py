"""Nearest neighbours, clusters and near-duplicate codes, against naive second implementations."""

from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest
from index_support import unit_rows

from vlp.errors import UserError
from vlp.index import assign, hamming_pairs, kmeans, neighbours
from vlp.index import exact as index
from vlp.index.candidates import (
    bytes_of,
    candidates,
    family_of,
    fill,
    learn_lists,
    num_lists,
    train,
)
from vlp.index.metadata import open_metadata, read_rows, write_metadata
from vlp.index.plan import save_quick
from vlp.index.where import check_names, matching, parse


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


def test_neighbours_that_are_not_allowed_are_not_found(monkeypatch):
    rows, queries = unit_rows(500), unit_rows(20, seed=1)
    allowed = np.random.default_rng(0).random(500) < 0.3
    allowed[64:256] = False  # whole blocks
    expected = np.where(allowed, queries @ rows.T, -np.inf)
    for block in (1000, 64):
        monkeypatch.setattr(index, "BLOCK", block)
        _, numbers = neighbours(queries, rows, 12, allowed=allowed)
        assert numbers.tolist() == np.argsort(-expected, axis=1)[:, :12].tolist()
    _, numbers = neighbours(queries, rows, 3, allowed=np.arange(500) == 70)
    assert numbers.tolist() == [[70, -1, -1]] * 20


def written(folder, said, keys=("k0", "k1", "k2", "k3")):
    """Return the metadata of four samples, as an index holds it."""
    columns = {
        "key": keys,
        "caption": ["A red dog", "a cat", "two dogs", ""],
        "metadata": pa.array(said, pa.string()),
        "shard": ["s"] * 4,
        "offset": [0] * 4,
        "size": [1] * 4,
    }
    write_metadata(pa.table(columns), 7, folder / "metadata.arrow")
    return open_metadata(folder / "metadata.arrow")


def rows_that_meet(table, *conditions):
    return np.flatnonzero(matching(table, [parse(text) for text in conditions])).tolist()


@pytest.fixture
def table(tmp_path):
    said = [
        '{"width": 512, "language": "en", "score": 1, "safe": true, "tags": ["a"]}',
        '{"width": 100, "language": "de", "score": 0.5, "safe": false, "mixed": 3}',
        '{"width": 2000, "language": "EN-us", "mixed": "x"}',
        None,
    ]
    return written(tmp_path, said)


@pytest.mark.parametrize(
    ("conditions", "rows"),
    [
        (["width>=512"], [0, 2]),
        (["width < 512"], [1]),
        (["width!=100"], [0, 2]),
        (["width=512", "language=en"], [0]),
        (["language~en"], [0, 2]),
        (["caption~DOG"], [0, 2]),
        (["key=k3"], [3]),
        (["score>0.5"], [0]),
        (["safe=true"], [0]),
        (["safe=false"], [1]),
        (["mixed=3"], [1]),
        (['language=["en", "de"]'], [0, 1]),
        (["width=[100, 2000]", "width>100"], [2]),
        (["safe=[true, false]"], [0, 1]),
        (["language=[]"], []),
        ([], [0, 1, 2, 3]),
    ],
)
def test_conditions_find_the_rows_that_meet_them_all(conditions, rows, table):
    check_names([parse(text) for text in conditions], [table])
    assert rows_that_meet(table, *conditions) == rows


def test_whole_numbers_are_compared_to_their_last_digit(tmp_path):
    table = written(tmp_path, [f'{{"id": {2**53 + n}, "hash": {2**64 - 1 - n}}}' for n in range(4)])
    assert rows_that_meet(table, f"id={2**53 + 1}") == [1]
    assert rows_that_meet(table, f"id>{2**53 + 1}") == [2, 3]
    assert rows_that_meet(table, "id>0.5") == [0, 1, 2, 3]
    assert rows_that_meet(table, f"id<{2**70}") == [0, 1, 2, 3]
    assert rows_that_meet(table, f"hash={2**64 - 2}") == [1]  # no column of numbers holds it


def test_a_field_does_not_hide_the_key_or_the_caption(tmp_path):
    table = written(tmp_path, ['{"key": "other", "caption": "a dog"}', *["{}"] * 3])
    assert rows_that_meet(table, "key=k1") == [1]
    assert rows_that_meet(table, "key=other") == []
    assert rows_that_meet(table, "caption~dog") == [0, 2]


def test_a_field_of_texts_and_others_is_spelt_as_json_spells_it(tmp_path):
    said = ['{"safe": true}', '{"safe": "x"}', '{"safe": 1.5}', '{"safe": "half \\ud800"}']
    table = written(tmp_path, said)
    assert table["field:safe"].to_pylist() == ["true", "x", "1.5", "half \\ud800"]
    assert read_rows(table, [3])[0]["fields"] == {"safe": "half \ud800"}


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("width", "The condition 'width' is none. Write a field, a sign"),
        ("with>3", "has a field 'with'. Did you mean width"),
        ("width>wide", "width is a number, and 'wide' is none"),
        ("width~1", "width is no text"),
        ("safe=maybe", "safe is true or false, got 'maybe'"),
        ("tags=a", "has a field 'tags'"),
        ('language=["en", "de', "The list in the condition .* is none. Write it in JSON"),
    ],
)
def test_a_condition_that_cannot_be_met_says_what_to_write(condition, told, table):
    def ask():
        conditions = [parse(condition)]
        check_names(conditions, [table])
        return matching(table, conditions)

    with pytest.raises(UserError, match=told):
        ask()


def test_metadata_comes_back_as_it_was_with_its_number(table):
    assert table["id"].to_pylist() == [7, 8, 9, 10]
    assert read_rows(table, [1])[0]["fields"] == {
        "width": 100,
        "language": "de",
        "score": 0.5,
        "safe": False,
        "mixed": 3,
    }
    assert read_rows(table, [3])[0] == {
        "id": 10,
        "key": "k3",
        "caption": "",
        "shard": "s",
        "offset": 0,
        "size": 1,
        "fields": {},
    }


def test_sizes_are_read_as_people_write_them():
    assert [bytes_of(text) for text in ("2GB", "1.5 MB", "1e9", "10k", "3GiB")] == [
        2 * 10**9,
        1_500_000,
        10**9,
        10_000,
        3 * 10**9,
    ]
    for text in ("", "GB", "-1GB", "two", "1e", "0"):
        with pytest.raises(UserError, match="is no size"):
            bytes_of(text)


def test_lists_grow_with_the_root_of_the_rows():
    assert [num_lists(count) for count in (4, 1000, 200_000, 1_000_000, 10**8)] == [
        1,
        128,
        2048,
        4096,
        32768,
    ]


def test_vectors_of_any_length_have_product_codes_and_these_tell_their_cosines():
    rows, queries = unit_rows(1000, dim=15), unit_rows(20, dim=15, seed=1)
    [plan] = candidates(len(rows), 15, None, None, "ivf_pq")
    assert family_of(plan.kind) == "ivf_pq"
    lists = num_lists(len(rows))
    quick = fill(train(plan, rows, learn_lists(rows, lists, None)), plan, rows)
    told, found = replace(plan, effort=lists).ask(quick, queries, len(rows))
    assert np.array_equal(np.sort(found, axis=1), np.tile(np.arange(len(rows)), (20, 1)))
    errors = told - np.take_along_axis(queries @ rows.T, found, 1)
    assert errors.std() < 0.022  # codes of whole vectors: 0.025


def test_a_full_disk_is_no_error_of_faiss():
    quick = faiss.IndexFlatIP(16)
    quick.add(unit_rows(1000))
    with pytest.raises(OSError, match="No space left"):
        save_quick(quick, Path("/dev/full"))
