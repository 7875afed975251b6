"""The order of samples is arithmetic."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from data_pipelines import plan as plan_module
from data_pipelines.plan import Plan, Resampled, Row, check_processes, hash63, sample_seed
from vlp.errors import UserError

COUNTS = np.array([7, 1, 0, 12, 3])


def take(plan: Plan, start: int, count: int) -> list:
    return [plan.place(position) for position in range(start, start + count)]


def samples(places) -> Counter:
    return Counter((p.source, p.shard, p.index) for p in places)


def every_sample(counts, source=0) -> Counter:
    return Counter((source, s, i) for s, count in enumerate(counts) for i in range(count))


@pytest.fixture(params=[(16, 8192), (3, 2), (4, 3), (7, 5)], ids=str)
def lanes(request, monkeypatch):
    """A number of lanes, with windows so short that small sets are cut into them."""
    lanes, window = request.param
    monkeypatch.setattr(plan_module, "WINDOW", window)
    return lanes


def test_every_epoch_holds_every_sample_once_whatever_the_batch_and_the_lanes(lanes):
    row = Row(COUNTS, 3, lanes)
    places = [place for step in range(23) for place in Plan([row], 5, lanes=lanes).batch(step * 5)]
    for epoch in range(5):
        assert samples(p for p in places if p.epoch == epoch) == every_sample(COUNTS)
        assert [p.epoch for p in places] == sorted(p.epoch for p in places)


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 6])
def test_processes_share_a_batch_without_changing_it(processes, lanes):
    plan = Plan([Row(COUNTS, 0, lanes)], 12, lanes=lanes)
    whole = plan.batch(36)
    shared = [plan.batch(36, process, processes) for process in range(processes)]
    assert [place for turn in zip(*shared, strict=True) for place in turn] == whole


def test_a_process_reads_few_lanes_of_a_large_set(monkeypatch):
    monkeypatch.setattr(plan_module, "WINDOW", 10)
    plan = Plan([Row(np.full(400, 10), 0, 16)], 64)
    for process in range(4):
        seen = {p.shard for start in range(0, 640, 64) for p in plan.batch(start, process, 4)}
        # 4 of 16 lanes, 10 samples a step in each window, which may begin inside a shard.
        assert len(seen) <= 4 * 5


def test_a_plan_goes_on_from_any_number_of_samples_seen(lanes):
    make = lambda: Plan([Row(COUNTS, 1, lanes)], 5, lanes=lanes)  # noqa: E731
    endless = take(make(), 0, 200)
    for start in (0, 1, 22, 23, 24, 117):
        assert take(make(), start, 40) == endless[start : start + 40]


def test_the_order_does_not_depend_on_the_batch_size():
    row = Row(COUNTS, 1)
    assert Plan([row], 4).batch(8) + Plan([row], 4).batch(12) == Plan([row], 8).batch(8)


def test_epochs_and_seeds_have_orders_of_their_own(lanes):
    orders = {
        tuple((p.shard, p.index) for p in take(Plan([Row(COUNTS, seed, lanes)], 5), 23 * epoch, 23))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_neighbours_in_the_shards_are_no_neighbours_in_the_order():
    places = take(Plan([Row(np.full(100, 100), 0)], 5), 0, 10_000)
    numbers = np.array([p.shard * 100 + p.index for p in places])
    assert (np.abs(np.diff(numbers)) == 1).mean() < 0.002
    assert abs(np.corrcoef(numbers, np.arange(10_000))[0, 1]) < 0.05


@pytest.mark.parametrize("most", [1, 2, 5])
def test_an_epoch_holds_every_sample_as_often_as_asked_and_copies_apart(most, lanes):
    rng = np.random.default_rng(most)
    copies = [rng.integers(0, most + 1, count) for count in (40, 1, 0, 90, 60)]
    row = Row(np.array([len(c) for c in copies]), 0, lanes, copies)
    plan = Plan([row], 16, lanes=lanes)
    wanted = Counter({(0, s, i): int(n) for s, c in enumerate(copies) for i, n in enumerate(c)})
    for epoch in range(2):
        places = take(plan, epoch * len(row), len(row))
        assert samples(places) == +wanted
        assert len(set(places)) == len(row)  # copies are told apart
        assert {p.copy for p in places} <= set(range(most))


def test_copies_of_a_sample_keep_out_of_one_batch():
    rng = np.random.default_rng(0)
    copies = [rng.integers(0, 4, 50) for _ in range(6)]
    row = Row(np.full(6, 50), 0, copies=copies)
    plan = Plan([row], 16)
    for start in range(0, 3 * len(row), 16):
        seen = Counter((p.epoch, p.shard, p.index) for p in plan.batch(start))
        assert max(seen.values()) == 1


def test_sources_are_mixed_by_weight_and_each_keeps_its_epochs(monkeypatch):
    monkeypatch.setattr(plan_module, "MIX_SLOTS", 100)
    rows = [Row(np.array([100, 50]), 0), Row(np.array([30]), 5)]
    plan = Plan(rows, 16, weights=(0.7, 0.3))
    places = take(plan, 0, 16 * 100)
    assert Counter(p.source for p in places) == {0: 1120, 1: 480}
    assert set(samples(p for p in places if p.source == 1).values()) == {16}
    assert plan.epochs(16 * 100) == pytest.approx([1120 / 150, 16])
    assert Counter(p.source for p in places[:400])[1] == pytest.approx(120, abs=40)


def test_a_source_of_small_weight_is_not_left_out(monkeypatch):
    monkeypatch.setattr(plan_module, "MIX_SLOTS", 100)
    plan = Plan([Row(np.array([50]), 0), Row(np.array([50]), 1)], 8, weights=(1, 1e-9))
    assert {p.source for p in take(plan, 0, 1600)} == {0, 1}


def test_drawing_with_replacement_follows_from_the_seed_and_reaches_every_shard():
    plan, again = (Plan([Resampled(20, 3)], 8) for _ in range(2))
    places = [plan.place(position) for position in range(0, 320_000, 301)]
    assert places == [again.place(position) for position in range(0, 320_000, 301)]
    assert {p.shard for p in places} == set(range(20))
    assert len(set(places)) == len(places)
    assert plan.num_samples is None


def test_plans_of_other_data_or_order_have_another_identity():
    plans = [
        Plan([Row(COUNTS, 0)], 5),
        Plan([Row(COUNTS, 1)], 5),
        Plan([Row(COUNTS[::-1].copy(), 0)], 5),
        Plan([Row(COUNTS, 0, 3)], 5, lanes=3),
        Plan([Row(COUNTS, 0, copies=[np.ones(n, int) for n in COUNTS])], 5),
        Plan([Resampled(5, 0)], 5),
        Plan([Row(COUNTS, 0), Row(COUNTS, 0)], 5, weights=(1, 2)),
    ]
    assert len({plan.identity() for plan in plans}) == len(plans)
    assert plans[0].identity() == Plan([Row(COUNTS.copy(), 0)], 7).identity()


def test_a_thousand_million_samples_are_planned_at_once():
    code = """
import time
import numpy as np
from data_pipelines.plan import Plan, Row
start = time.perf_counter()
plan = Plan([Row(np.full(100_000, 10_000), 0)], 32_768)
places = plan.batch(5 * 10**8, 3, 64)
assert len(places) == 512 and max(p.shard for p in places) < 100_000
seconds = time.perf_counter() - start
print(seconds, open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, kilobytes = map(float, said.stdout.split())
    assert seconds < 3
    assert kilobytes < 300_000


def test_a_seed_depends_on_each_of_its_parts_and_is_the_same_in_another_process():
    changed = [(0, 1, "a", "k", 2), (7, 1, "a", "k", 2), (0, 7, "a", "k", 2)]
    changed += [(0, 1, "b", "k", 2), (0, 1, "a", "l", 2), (0, 1, "a", "k", 7)]
    seeds = {sample_seed(*parts) for parts in changed}
    assert len(seeds) == 6
    code = "from data_pipelines.plan import hash63; print(hash63('é'))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(said.stdout) == hash63("é")
    assert 0 <= hash63("é") < 2**63


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match=r"batch of 20 is larger than the data, 10 samples"):
        Plan([Row(np.array([10]), 0)], 20)


def test_a_batch_that_does_not_divide_by_the_processes_names_ones_that_do():
    with pytest.raises(UserError, match=r"--data.batch-size 9 or 12"):
        check_processes(10, 3)


def test_a_batch_of_a_mix_holds_few_samples_twice():
    plan = Plan([Row(np.array([100]), 0), Row(np.array([100]), 1)], 64, weights=(1, 1))
    repeats = 0
    for start in range(0, 12_800, 64):
        seen = Counter((p.source, p.index) for p in plan.batch(start))
        repeats += 64 - len(seen)
    assert repeats < 600  # where a batch straddles two epochs of a source; 1,375 by chance
