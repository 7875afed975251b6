"""Signals and the clock: heard, agreed on, answered."""

import os
import signal
import threading

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from training import signals
from training.signals import SIGNALS, SaveRequests
from vlp.cli import main
from vlp.errors import Stopped


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """Hear Ctrl-C whatever started the tests: a shell's job in background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_heard_and_ends_the_run_by_its_number(number, monkeypatch, capsys):
    before = signal.signal(number, signal.default_int_handler)
    try:
        with SaveRequests(0, is_main=True) as heard:
            assert not heard.agree()
            os.kill(os.getpid(), number)
            assert heard.agree()
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, before)
    heard.raise_if_stopped(step=10, steps=10)  # a run that is through has not been stopped
    monkeypatch.setattr("vlp.cli.run", lambda argv: heard.raise_if_stopped(step=7, steps=10))
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 128 + number
    assert f"Stopped by {number.name} after step 7 of 10" in capsys.readouterr().err


def test_ctrl_c_again_ends_at_once_but_one_that_a_launcher_passes_on_does_not(monkeypatch):
    with SaveRequests(0, is_main=False) as heard:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert heard.agree()
        monkeypatch.setattr(signals, "ONE_PRESS_SECONDS", 0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_was_ignored_stays_ignored_and_a_thread_hears_nothing():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    found = []

    def in_thread():
        with SaveRequests(0, is_main=True) as heard:
            found.append((signal.getsignal(signal.SIGTERM), heard.agree()))

    try:
        with SaveRequests(0, is_main=True) as heard:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not heard.agree()
    finally:
        signal.signal(signal.SIGUSR1, before)
    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert found == [(signal.getsignal(signal.SIGTERM), False)]


def test_the_clock_asks_for_a_checkpoint_each_time_its_minutes_are_over(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    heard, asked = SaveRequests(2, is_main=True), []
    for now[0] in range(0, 400, 50):
        asked += [now[0]] if heard.agree() else []
    assert asked == [150, 300]
    assert not heard.signal


def one_rank(rank: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", 3)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=3)
    with SaveRequests(1e-9 if rank == 2 else 0, is_main=rank == 0) as heard:
        found = [heard.agree()]  # the clock of another than the main process decides nothing
        if rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        found += [heard.agree()]
    assert found == [False, True]
    with pytest.raises(Stopped) as stopped:
        heard.raise_if_stopped(1, 2)
    assert stopped.value.number == signal.SIGUSR1
    assert bool(str(stopped.value)) == (rank == 0)
    dist.destroy_process_group()


def test_three_processes_agree_although_one_alone_got_the_signal(tmp_path):
    mp.start_processes(one_rank, (str(tmp_path),), nprocs=3, start_method="fork")
