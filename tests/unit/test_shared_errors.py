"""What several processes have to say is said by one of them."""

import os

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from training.compute import shared_errors
from training.compute.processes import start_processes
from training.compute.shared_errors import errors_said_once, reason_elsewhere
from training.config import TrainConfig
from vlp.errors import UserError, said_by_first_process

GONE = "Connection closed by peer [127.0.0.1]:29500"
CASES = {
    "the same mistake of all": (["a", "a", "a"], {0: "a"}),
    "a mistake of the last": ([GONE, GONE, "b"], {2: "b"}),
    "two mistakes": (["a", "b", "a"], {0: "a", 1: "b"}),
    "a process that was killed": ([GONE, None, GONE], {0: "Another process of the run ended"}),
}


def one_rank(rank: int, folder: str, case: str) -> None:
    shared_errors.HEAD_START_SECONDS = 0.5
    shared_errors.LISTENING_SECONDS = 0.0
    met, said = CASES[case]
    store = dist.FileStore(f"{folder}/store", 3)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=3)
    if met[rank] is None:
        os._exit(0)
    if met[rank] == GONE and "b" in met:  # it hears of the other's end when that has spoken
        dist.distributed_c10d._get_default_store().wait([shared_errors.REASON])
    with pytest.raises((UserError, SystemExit)) as end, errors_said_once():
        raise RuntimeError(GONE) if met[rank] == GONE else UserError(met[rank])
    if rank in said:
        assert end.type is UserError
        assert str(end.value).startswith(said[rank])
    else:
        assert end.type is SystemExit
        assert end.value.code == 2
    assert reason_elsewhere() == ("" if case.endswith("killed") else next(iter(said.values())))
    os._exit(0)


@pytest.mark.parametrize("case", CASES)
def test_an_error_is_said_by_one_process_and_what_follows_from_it_by_none(case, tmp_path):
    mp.start_processes(one_rank, (str(tmp_path), case), nprocs=3, start_method="fork")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="a bug"), errors_said_once():
        raise RuntimeError("a bug")


def test_before_the_processes_know_each_other_the_first_speaks(monkeypatch):
    slept = []
    monkeypatch.setattr("vlp.errors.time.sleep", slept.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(UserError), said_by_first_process():
            raise UserError("no such option")
    assert slept == [30]


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_what_accelerate_would_do_by_itself_is_refused(name, monkeypatch):
    monkeypatch.setenv(name, "true")
    with pytest.raises(UserError, match=f"sets {name}.*--sharding fsdp"):
        start_processes(TrainConfig())


def test_gradients_are_not_divided_by_what_the_launcher_says(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(UserError, match=r"ACCUMULATION_STEPS.*--image-piece"):
        start_processes(TrainConfig())


def test_a_launcher_that_started_one_process_of_several_is_named(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    start_processes(TrainConfig())
    assert not capsys.readouterr().err
    monkeypatch.setenv("MASTER_PORT", "29500")
    start_processes(TrainConfig())
    assert "--multi_gpu --num_processes N" in capsys.readouterr().err
