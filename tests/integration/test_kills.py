"""Runs on engines that are killed at random moments, over and over, end in the same bytes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engine_support import group, wait_until
from tests_support import pairs

from data_pipelines.shards import write_shards

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
KILLS = 20
"""Of each command, shared by the pools."""
WORKERS = (1, 2, 4)
KEEP = ("caption_words(min=2)", "image_side(min=30)", "one_colour", "exact_duplicate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with 16 shards; runs are begun in folders beside them."""
    place = tmp_path_factory.mktemp("kills")
    write_shards(pairs(16 * 12), place / "raw", samples_per_shard=12)
    return place


@pytest.fixture(scope="module")
def commands(folder, model):
    """Return the commands, whose output is ``out`` in the folder that they run in."""
    return {
        "filter": ("filter", "../raw", "out", "--samples-per-shard", "20", "--keep", *KEEP),
        "embed": ("embed", str(model), "../raw", "out", "--samples-per-part", "12", "--pooled"),
    }


@pytest.fixture(scope="module")
def whole(folder, commands):
    """Return what uninterrupted runs write, in this order: nothing is compared with itself."""
    return {
        name: outcome(folder, f"{name}-whole", command, "--engine", "inline")
        for name, command in commands.items()
    }


def started(folder, name, command, *options):
    (folder / name).mkdir(exist_ok=True)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "vlp", *command, *options],
        cwd=folder / name,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcome(folder, name, command, *options):
    run = started(folder, name, command, *options)
    said = run.communicate(timeout=600)[0]
    assert run.returncode == 0, said
    return contents(folder / name / "out")


def contents(out):
    """Return the bytes of every file, without what tells how long it took."""
    found = {}
    for path in out.rglob("*"):
        if path.is_file() and path.name not in ("report.json", "report.html"):
            found[path.relative_to(out).as_posix()] = path.read_bytes()
    if (out / "report.json").exists():
        report = json.loads((out / "report.json").read_text())
        del report["timing"]
        found["report.json"] = report
    return found


def num_files(out):
    """Return how many files there are below an unfinished output, those half written included."""
    part = out.with_name(f".{out.name}.part")
    return sum(len(names) for _, _, names in os.walk(part))


def kill_at_random(run, out, rng):
    """Kill a run, or one of its workers, some files after it has begun to write; return which."""
    before, wanted, pause = num_files(out), rng.randint(1, 4), rng.uniform(0, 0.05)
    kills_worker = rng.random() < 0.3
    wait_until(lambda: num_files(out) >= before + wanted or run.poll() is not None, 300)
    time.sleep(pause)
    if run.poll() is not None:
        return "nobody: it had ended"
    workers = [pid for pid in group(run.pid) if b"forkserver" in command_line(pid)][1:]
    if kills_worker and workers:
        os.kill(rng.choice(sorted(workers)), signal.SIGKILL)
        return f"a worker after {wanted} files and {pause:.3f} s"
    run.kill()
    run.wait()
    # What forks the workers hears of it when it has imported what they need.
    wait_until(lambda: not group(run.pid), 200)
    return f"the run after {wanted} files and {pause:.3f} s"


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("name", ["filter", "embed"])
def test_runs_that_are_killed_at_random_moments_end_in_the_same_bytes(
    name, workers, folder, commands, whole
):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    place, options = f"{name}-{workers}", ("--workers", str(workers))
    out, kills = folder / place / "out", 0
    while kills < KILLS // len(WORKERS) + 1:
        run = started(folder, place, commands[name], *options)
        killed = kill_at_random(run, out, rng)
        print(f"{name}, {workers} workers: killed {killed}")
        if run.poll() is None or out.exists():  # it goes on, or has ended: begin again
            said = run.communicate(timeout=600)[0]
            assert run.returncode == 0 or killed.startswith("the run"), said
            assert contents(out) == whole[name]
            subprocess.run(["rm", "-r", str(out)], check=True)
        kills += not killed.startswith("nobody")
    assert outcome(folder, place, commands[name], *options) == whole[name]


@pytest.mark.parametrize("name", ["filter", "embed"])
def test_ray_gives_the_bytes_of_the_pool(name, folder, commands, whole):
    pytest.importorskip("ray")
    options = ("--engine", "ray", "--workers", "2")
    assert outcome(folder, f"{name}-ray", commands[name], *options) == whole[name]
