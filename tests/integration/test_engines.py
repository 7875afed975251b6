"""Engines give the same results whatever does the tasks, and however it dies."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from engine_support import Work, group, is_running, wait_until

from data_pipelines.engine import Engine
from vlp.errors import UserError

ROOT = Path(__file__).parents[2]
POOL, INLINE = Engine(workers=2), Engine(kind="inline")
ENGINES = [
    pytest.param(INLINE, id="inline"),
    *(pytest.param(Engine(workers=n), id=f"pool of {n}") for n in (1, 2, 4)),
    pytest.param(Engine(kind="ray", workers=2), id="ray", marks=pytest.mark.slow),
]
POOLS = ENGINES[2:]


def done(engine, work, count=7):
    return list(engine.run(work, range(count), what="compute", on_gpu=True))


@pytest.fixture(autouse=True)
def _nodes_find_the_tests(monkeypatch):
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.fixture
def expected(tmp_path):
    """Return the results and files of a plain loop."""
    folder = tmp_path / "expected"
    folder.mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results = [Work(folder)(task) for task in range(7)]
    torch.set_num_threads(threads)
    return results, contents(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "deaths"}


@pytest.mark.parametrize("engine", ENGINES)
def test_results_and_files_are_those_of_a_loop_in_one_thread(engine, expected, tmp_path):
    (tmp_path / "out").mkdir()
    assert done(engine, Work(tmp_path / "out", slow=0.3)) == expected[0]
    assert contents(tmp_path / "out") == expected[1]


@pytest.mark.parametrize("engine", POOLS)
def test_a_task_whose_worker_is_killed_begins_anew(engine, expected, tmp_path, capfd):
    (tmp_path / "out").mkdir()
    assert done(engine, Work(tmp_path / "out", kills=2)) == expected[0]
    assert contents(tmp_path / "out") == expected[1]
    assert capfd.readouterr().err.count("The worker of 3 ") == 2


@pytest.mark.parametrize("engine", POOLS)
def test_a_task_that_always_kills_its_worker_ends_the_run_by_name(engine, tmp_path):
    with pytest.raises(RuntimeError, match=r"^The worker of 3 .* 3 times\."):
        done(engine, Work(tmp_path, kills=10))
    assert (tmp_path / "deaths").read_text() == "xxx"


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_person_must_mend_passes_as_it_is(engine, tmp_path):
    with pytest.raises(UserError, match=r"^2 is refused. Give another.$"):
        done(engine, Work(tmp_path, refuses=(2,)))
    with pytest.raises(OSError, match="No space left"):
        done(engine, Work(tmp_path, fills_the_disk=(2,)))


@pytest.mark.parametrize("engine", ENGINES)
def test_failed_tasks_are_named_once_the_others_are_done(engine, expected, tmp_path):
    results, work = [], Work(tmp_path, fails=(4, 2))
    with pytest.raises(RuntimeError) as raised:
        results.extend(engine.run(work, range(7), what="compute", on_gpu=True))
    assert str(raised.value) == (
        "2 of 7 tasks failed, the others are done: 2: ValueError: 2 is a bad number; "
        "4: ValueError: 4 is a bad number."
    )
    assert "engine_support.py" in raised.value.__notes__[0]
    assert results == expected[0][:2]
    written = {path.name for path in tmp_path.glob("*.bin")}
    assert written == {"0.bin", "1.bin", "3.bin", "5.bin", "6.bin"}


@pytest.mark.slow
def test_tasks_of_a_node_that_is_lost_are_done_by_others(expected, tmp_path, capfd):
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    (tmp_path / "out").mkdir()
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        engine, work = Engine(kind="ray", address=cluster.address), Work(tmp_path / "out", pause=3)
        results = engine.run(work, range(7), what="compute", on_gpu=True)
        first = [next(results), next(results)]  # so both nodes have begun
        cluster.remove_node(node, allow_graceful=False)
        assert [*first, *results] == expected[0]
    finally:
        cluster.shutdown()
    assert contents(tmp_path / "out") == expected[1]
    assert "was lost" in capfd.readouterr().err


def test_no_tasks_need_no_workers():
    assert done(Engine(kind="ray", address="nowhere:1"), Work(Path()), 0) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_the_caller_keeps_its_threads(engine, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        results = engine.run(Work(tmp_path), range(3), what="compute", on_gpu=True)
        next(results)
        assert torch.get_num_threads() == 3
        results.close()
        assert torch.get_num_threads() == 3
        assert (tmp_path / "0.threads").read_text() == "1"
    finally:
        torch.set_num_threads(before)


def test_engines_refuse_what_makes_no_sense():
    with pytest.raises(UserError, match="workers=0 does no work"):
        Engine(workers=0)
    with pytest.raises(UserError, match="goes with --engine ray"):
        Engine(address="auto")


def started(folder, kind="pool"):
    """Return a run of its own whose workers sleep, begun in its own session."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "engine_support.py"), str(folder), kind],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_workers_end_with_a_run_that_is_killed(tmp_path):
    run = started(tmp_path)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert all(map(is_running, workers))
    assert run.pid not in workers
    run.kill()
    run.wait()
    wait_until(lambda: not any(map(is_running, workers)), 5)
    wait_until(lambda: not group(run.pid), 5)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
def test_ctrl_c_ends_a_run_and_its_workers_at_once_and_quietly(seed, tmp_path):
    moment = random.Random(seed).uniform(0.3, 4)
    print(f"seed {seed}: Ctrl-C after {moment:.2f} s")
    run = started(tmp_path)
    time.sleep(moment)
    os.killpg(run.pid, signal.SIGINT)
    start = time.monotonic()
    said = run.communicate()[1]
    assert time.monotonic() - start < 10
    wait_until(lambda: not group(run.pid), 10)
    if list(tmp_path.iterdir()):  # else Python itself may have been starting
        assert run.returncode == 130
        assert said == ""
