"""Mined plans: what is found in features, and the batches that are made of it."""

from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.mine import mine_pool
from data_pipelines.mining import nearest as nearest_module
from data_pipelines.mining import tiles as tiles_module
from data_pipelines.mining.clusters import capped
from data_pipelines.mining.false_negatives import false_negatives, hanging_together
from data_pipelines.mining.mined import LEFT_OUT, NO_FEATURES, Mined, read_mined, write_mined
from data_pipelines.mining.nearest import nearest
from data_pipelines.mining.options import Bound, MineOptions
from data_pipelines.mining.ramp import Ramp
from data_pipelines.mining.row import MinedRow
from data_pipelines.mining.samples import Pool
from data_pipelines.plan import Plan
from data_pipelines.shards import ShardSet
from vlp.errors import UserError
from vlp.index import assign

METHODS = {
    "clusters": MineOptions(clusters=6),
    "capped": MineOptions(clusters=6, cap=1.2),
    "neighbours": MineOptions(neighbours=3),
}
COUNTS = np.array([90, 0, 111, 200, 2])
COPIES = {"once": None, "copies": 3}
DIM = 6


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def pool(count: int, seed: int = 0, *, lacking: int = 5) -> Pool:
    """Return samples of which some are nearly equal, have the same caption, or no features."""
    rng = np.random.default_rng(seed)
    features = {kind: unit(rng.standard_normal((count, DIM))) for kind in ("image", "text")}
    for kind, rows in features.items():
        twice = rng.integers(count, size=(count // 8, 2))
        more = rng.standard_normal((len(twice), DIM))
        features[kind][twice[:, 0]] = unit(rows[twice[:, 1]] + 0.05 * more)
    row = np.arange(count)
    row[rng.permutation(count)[:lacking]] = -1
    return Pool(features, row, rng.integers(count // 2, size=count).astype(np.int32))


def shard_set(counts: np.ndarray) -> ShardSet:
    names = [Path(f"{number:06d}.tar") for number in range(len(counts))]
    return ShardSet(names, counts, np.ones(len(counts), bool))


def copies_of(counts: np.ndarray, most: int | None, seed: int = 0) -> list[np.ndarray] | None:
    rng = np.random.default_rng(seed)
    return None if most is None else [rng.integers(0, most, count) for count in counts]


def mined_row(method: str, most: int | None = None, *, batch=24, share=(0.5, 0.5, 0), seed=0):
    copies = copies_of(COUNTS, most, seed)
    mined = mine_pool(pool(int(COUNTS.sum()), seed), shard_set(COUNTS), METHODS[method], copies)
    return MinedRow(COUNTS, seed, batch, mined, Ramp(*share), copies)


def samples(row: MinedRow, positions: range) -> list[int]:
    """Return the numbers of samples at some positions."""
    starts = np.cumsum(row.counts) - row.counts
    places = [row.place(position) for position in positions]
    return [int(starts[shard]) + index for _, shard, index, _ in places]


def batches(row: MinedRow, epochs: int) -> list[list[int]]:
    count = epochs * len(row) // row.batch_size
    size = row.batch_size
    return [samples(row, range(n * size, (n + 1) * size)) for n in range(count)]


def may_not_meet(mined: Mined) -> set[tuple]:
    """Return the pairs that are kept apart, by brute force."""
    same = np.argwhere(mined.group[:, None] == mined.group)
    return {*map(tuple, same.tolist()), *map(tuple, mined.apart.tolist())}


@pytest.mark.parametrize("most", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [37, 260])
def test_every_epoch_holds_every_sample_as_often_as_it_should(method, most, batch):
    row = mined_row(method, most, batch=batch)
    times = np.concatenate(row.copies) if row.copies else np.ones(COUNTS.sum(), int)
    wanted = Counter({sample: int(n) for sample, n in enumerate(times)})
    assert len(row) == times.sum()
    for epoch in range(3):
        positions = range(epoch * len(row), (epoch + 1) * len(row))
        assert Counter(samples(row, positions)) == +wanted
        places = {row.place(position) for position in positions}
        assert len(places) == len(row)  # copies are told apart
        assert {place[0] for place in places} == {epoch}


@pytest.mark.parametrize("most", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("method", METHODS)
def test_false_negatives_never_meet_in_a_batch_nor_over_the_end_of_an_epoch(method, most):
    for seed in range(2):
        row = mined_row(method, most, seed=seed)
        apart = may_not_meet(row.mined)
        assert len(row.mined.apart) > 20
        for batch in batches(row, 4):
            assert not {*combinations(sorted(batch), 2)} & apart
            assert len({*batch}) == len(batch)
        assert [row.arrangement(epoch).met for epoch in range(4)] == [0] * 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_a_batch_of_a_plan_that_goes_on_from_anywhere(method, processes):
    whole = Plan([mined_row(method)], 24)
    wanted = [whole.place(position) for position in range(4 * 403)]
    assert whole.num_samples == 403
    for start in (0, 24 * 16, 24 * 17, 24 * 40):
        again = Plan([mined_row(method)], 24)
        shared = [again.batch(start, process, processes) for process in range(processes)]
        found = [place for turn in zip(*shared, strict=True) for place in turn]
        assert found == wanted[start : start + 24]


def test_a_share_of_each_whole_batch_is_of_one_cluster():
    most = []
    for seed in range(3):
        row = mined_row("clusters", seed=seed)
        for epoch in range(4):
            span, order = row.span(epoch), row.arrangement(epoch).order
            whole = order[span.head : len(order) - span.tail].reshape(-1, 24)
            assert len(whole) == span.num_batches >= 15
            # The hard part stands first; the batch that straddles two epochs has none.
            most += [np.bincount(row.mined.cluster[hard].clip(0)).max() for hard in whole[:, :12]]
    assert min(most) >= 9  # a false negative may have to change places with a stranger
    assert np.mean(most) > 11.7


def test_seeds_stand_with_their_neighbours_and_neighbours_are_no_false_negatives():
    row = mined_row("neighbours", seed=2)
    near = row.mined.neighbours
    assert not may_not_meet(row.mined) & {
        (min(one, other), max(one, other))
        for one, others in enumerate(near.tolist())
        for other in others
        if other >= 0
    }
    span = row.span(0)
    order = row.arrangement(0).order[span.head :].tolist()
    alone = 0
    for start in range(0, span.num_batches * 24, 24):
        hard = order[start : start + 12]
        for one in hard:
            alone += not any(one in near[other] or other in near[one] for other in hard)
    assert alone <= 0.1 * span.num_batches * 12


def test_the_share_of_hard_batches_follows_the_samples_seen():
    row = mined_row("clusters", share=(0.0, 1.0, 403), seed=1)
    first, later = row.arrangement(0), row.arrangement(2)
    largest = [
        [
            np.bincount(row.mined.cluster[order[s : s + 24]].clip(0)).max() / 24
            for s in range(0, 24 * 15, 24)
        ]
        for order in (first.order, later.order[row.span(2).head :])
    ]
    assert np.mean(largest[0][:4]) < 0.4 < 0.7 < np.mean(largest[0][-4:])
    assert np.mean(largest[1]) > 0.8


def test_epochs_and_seeds_are_arranged_anew_and_every_sample_is_hard_now_and_then():
    row = mined_row("clusters")
    hard = set()
    for epoch in range(8):
        span, order = row.span(epoch), row.arrangement(epoch).order
        whole = order[span.head : len(order) - span.tail].reshape(-1, 24)
        hard |= {*whole[:, :12].reshape(-1).tolist()}
    has_features = np.flatnonzero(row.mined.cluster >= 0)
    assert len(hard & {*has_features.tolist()}) > 0.97 * len(has_features)
    orders = {tuple(row.arrangement(epoch).order.tolist()) for epoch in range(3)}
    other = replace(row, seed=7)
    assert len(orders | {tuple(other.arrangement(0).order.tolist())}) == 4


def test_a_plan_that_takes_over_in_the_middle_of_an_epoch_reads_what_is_left_of_it():
    row = mined_row("clusters", seed=3)
    first = 24 * 24  # of 403 samples an epoch: in the second
    start, order, _ = row.arrangement(1)
    is_read = np.zeros(len(row), bool)
    is_read[order[: first - start]] = True
    mined = replace(mined_row("neighbours", seed=3).mined, read=np.packbits(is_read))
    later = replace(row, mined=mined, first=first)
    read = samples(row, range(403, first)) + samples(later, range(first, 806))
    assert Counter(read) == Counter(range(403))
    assert Counter(samples(later, range(806, 1209))) == Counter(range(403))
    apart = may_not_meet(mined)
    for at in range(first, 1600, 24):
        batch = samples(later, range(at, at + 24))
        assert not {*combinations(sorted(batch), 2)} & apart


def test_what_cannot_be_kept_apart_is_counted():
    group = np.where(np.arange(403) < 40, 0, np.arange(403)).astype(np.int32)
    mined = mine_pool(pool(403)._replace(group=group), shard_set(COUNTS), METHODS["clusters"])
    row = MinedRow(COUNTS, 0, 24, mined, Ramp(0.5, 0.5))
    # 40 of a group and 17 batches, one of which goes on in the next epoch.
    assert 40 - 17 <= row.arrangement(0).met <= 40 - 16 + 3
    assert Counter(samples(row, range(403))) == Counter(range(403))


def test_a_plan_is_known_by_its_hash_and_a_damaged_one_is_refused(tmp_path):
    mined = mined_row("neighbours").mined
    path = write_mined(mined, tmp_path)
    found = read_mined(tmp_path)
    assert found.hash == mined.hash == path.stem.rpartition("-")[2]
    for name in ("cluster", "group", "component", "apart", "neighbours"):
        np.testing.assert_array_equal(getattr(found, name), getattr(mined, name))
    assert found.told == mined.told
    rows = [MinedRow(COUNTS, 0, 24, found, Ramp(0.5, share)) for share in (0.5, 0.6)]
    rows += [MinedRow(COUNTS, 0, 25, found, Ramp(0.5, 0.5)), mined_row("clusters")]
    assert len({Plan([row], row.batch_size).identity() for row in rows}) == 4
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not as it was written"):
        read_mined(tmp_path)
    path.write_bytes(b"no plan")
    with pytest.raises(UserError, match=r"Cannot read the mined plan .* `vlp mine` wrote"):
        read_mined(tmp_path)


def test_other_shards_and_samples_that_were_not_mined_are_refused():
    copies = copies_of(COUNTS, 2)
    assert copies is not None
    mined = mine_pool(pool(403), shard_set(COUNTS), METHODS["clusters"], copies)
    mined.check(shard_set(COUNTS), copies)
    assert ((mined.cluster == LEFT_OUT) == (np.concatenate(copies) == 0)).all()
    assert (mined.cluster == NO_FEATURES).any()
    fewer = [np.where(np.arange(len(own)) % 2, own, 0) for own in copies]
    mined.check(shard_set(COUNTS), fewer)
    with pytest.raises(UserError, match=r"mined of 403 samples, and the shards here hold 400"):
        mined.check(shard_set(COUNTS - [0, 0, 1, 0, 2]), None)
    more = [np.maximum(own, 1) for own in copies]
    for unmined in (None, more):
        with pytest.raises(UserError, match=r"\d+ samples .* left out by the keep-list"):
            mined.check(shard_set(COUNTS), unmined)


@pytest.mark.parametrize("text", ["text:0.9", "image:0.8", "cross:0.7", "cross:0.9x", "text:1.1x"])
def test_pairs_above_a_bound_are_those_of_a_loop_over_all(text, monkeypatch):
    monkeypatch.setattr(tiles_module, "TILE", 16)
    features, bound = pool(90).features, Bound.parse(text)
    image, text_ = features["image"], features["text"]
    one, other = {"text": (text_, text_), "image": (image, image), "cross": (image, text_)}[
        bound.kind
    ]
    wanted = set()
    for i, j in combinations(range(90), 2):
        limits = [bound.limit] * 2
        if bound.is_relative:
            own = [float(image[n] @ text_[n]) for n in (i, j)]
            limits = [bound.limit * cosine if cosine > 0 else 1 for cosine in own]
        if max(one[i] @ other[j], one[j] @ other[i]) > min(limits):
            wanted.add((i, j))
    found = false_negatives(features, bound, exact=1000, seed=0)
    assert {*map(tuple, found.tolist())} == wanted
    assert wanted


def test_of_many_samples_nearly_all_pairs_that_are_close_are_found(monkeypatch):
    monkeypatch.setattr(tiles_module, "CELL", 40)
    features = pool(1500, lacking=0).features
    exact, found = (
        {
            *map(
                tuple,
                false_negatives(features, Bound.parse("image:0.95"), exact=n, seed=0).tolist(),
            )
        }
        for n in (2000, 0)
    )
    assert found <= exact
    assert len(found) > 0.97 * len(exact) > 100


def test_a_bound_that_holds_for_too_many_pairs_is_refused():
    with pytest.raises(UserError, match=r"More than .* above text:0.1.* Write a higher bound"):
        false_negatives(pool(1200).features, Bound.parse("text:0.1"), exact=5000, seed=0)


def test_neighbours_are_the_nearest_that_are_no_false_negatives(monkeypatch):
    monkeypatch.setattr(tiles_module, "TILE", 32)
    rows, group = pool(120).features["image"], pool(120).group
    apart = np.array([[0, 5], [3, 90]], np.int32)
    found = nearest(rows, group, apart, beside=1, exact=500, seed=0)
    assert found.shape == (120, 2 * nearest_module.KEPT)
    for one in range(120):
        cosines = rows @ rows[one]
        cosines[group == group[one]] = -2
        for pair in apart.tolist():
            if one in pair:
                cosines[sum(pair) - one] = -2
        np.testing.assert_array_equal(found[one], np.argsort(-cosines)[: found.shape[1]])


def test_clusters_hold_no_more_than_their_room_and_features_are_near_theirs():
    rows = unit(np.random.default_rng(0).standard_normal((500, DIM)) + 0.7)
    centroids = unit(np.random.default_rng(1).standard_normal((20, DIM)))
    ample = capped(rows, centroids, np.full(20, 500))
    np.testing.assert_array_equal(ample, assign(rows, centroids)[0])
    equal = capped(rows, centroids, np.full(20, 25))
    assert np.bincount(equal).tolist() == [25] * 20
    cosines = {
        name: (rows * centroids[own]).sum(1).mean()
        for name, own in {"ample": ample, "equal": equal, "any": np.arange(500) % 20}.items()
    }
    assert cosines["ample"] > cosines["equal"] > cosines["any"] + 0.15


def test_what_hangs_together_is_found_through_groups_and_pairs():
    group = np.array([0, 1, 0, 2, 3, 4], np.int32)
    found = hanging_together(group, np.array([[2, 3], [4, 5]], np.int32))
    assert found.tolist() == [0, 1, 0, 0, 2, 2]


@pytest.mark.parametrize("text", ["0.9", "text:", "text:2", "caption:0.9", "text:-0.1", "cross:x"])
def test_a_bound_that_is_none_says_how_one_is_written(text):
    with pytest.raises(UserError, match=r"Cannot read the bound .* Write a cosine, as text:0.95"):
        Bound.parse(text)
