"""The order of samples is arithmetic."""

import subprocess
import sys
from collections import Counter

import pytest

from data_pipelines.plan import Plan, check_processes, hash63, sample_seed
from vlp.errors import UserError


def test_every_epoch_holds_every_sample_once_whatever_the_batch():
    plan = Plan(num_samples=10, batch_size=4, seed=3)
    places = [place for step in range(10) for place in plan.batch(step * 4)]
    for epoch in range(4):
        assert Counter(p.index for p in places if p.epoch == epoch) == Counter(range(10))


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 6])
def test_processes_share_a_batch_without_changing_it(processes):
    plan = Plan(num_samples=50, batch_size=12, seed=0)
    whole = plan.batch(36)
    shared = [place for p in range(processes) for place in plan.batch(36, p, processes)]
    assert shared == whole


def test_a_plan_goes_on_from_any_number_of_samples_seen():
    plan = Plan(num_samples=23, batch_size=5, seed=1)
    endless = [plan.batch(step * 5) for step in range(20)]
    assert [plan.batch(step * 5) for step in range(13, 20)] == endless[13:]


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {
        tuple(p.index for p in Plan(30, 30, seed).batch(epoch * 30))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


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
        Plan(10, 20, 0)


def test_a_batch_that_does_not_divide_by_the_processes_names_ones_that_do():
    with pytest.raises(UserError, match=r"--data.batch-size 9 or 12"):
        check_processes(10, 3)
