"""A run that is killed, stopped or out of room goes on as if nothing had been."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import torch
from fork_server import ForkServer
from training_support import VIT, colours, differences, one_thread, rows, train, weights

from training import step
from vlp import cli
from vlp.errors import Stopped, UserError

KILLS = 20
REDUCTION_ERROR = 1e-4
"""Of a weight after 12 steps of which 4 were split over two processes."""
LEAST = {"step": 3, "save": 3, "evaluation": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("data") / "shards", 96)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("held_out") / "shards", 64, first=200)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    path = tmp_path_factory.mktemp("vit") / "vit.json"
    path.write_text(json.dumps(VIT))
    return path


@pytest.fixture(scope="module")
def fork_server(tmp_path_factory):
    runs = ForkServer(tmp_path_factory.mktemp("fork_server"), one_thread())
    yield runs
    runs.close()


def test_a_run_that_a_signal_stopped_equals_one_that_never_stopped(data, tmp_path, monkeypatch):
    options, steps, limit = ["--steps", "8", "--save-every", "0"], [], step._limit_scale
    train(tmp_path / "whole", data, *options)

    def stop(parts):
        limit(parts)
        steps.append(0)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(step, "_limit_scale", stop)
    with pytest.raises(Stopped, match="Stopped by SIGTERM after step 3 of 8"):
        train(tmp_path / "cut", data, *options)
    assert [p.name for p in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step_0000003"]
    train(tmp_path / "cut", data, *options)
    assert differences(tmp_path / "whole", tmp_path / "cut") == []


def everything(data, held_out, vit) -> list[str]:
    """Return a run in which all moves that can: memory, second encoder, dropout, stages."""
    return [
        *("train", "toy", "--data.shards", str(data), "--data.validation", str(held_out)),
        *("--data.batch-size", "24", "--data.workers", "2", "--log-every", "1"),
        *("--model.name", str(vit), "--model.patch-dropout", "0.5"),
        *("--memory", "40", "--memory-momentum", "0.9", "--optimizer.warmup", "5%"),
        *("--stages", "50%: freeze=visual", "rest: lr=0.5"),
    ]


@pytest.mark.slow
def test_a_run_killed_at_random_moments_equals_one_that_never_was(
    fork_server, data, held_out, vit, tmp_path
):
    argv = everything(data, held_out, vit)
    argv += ["--steps", "120", "--save-every", "5", "--validate-every", "96 samples", "--out"]
    fork_server.start(*argv, str(tmp_path / "whole"))
    assert fork_server.end() == 0, fork_server.said
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    moments, met = random.Random(seed), Counter()
    while met.total() < KILLS or any(met[phase] < least for phase, least in LEAST.items()):
        aim = moments.choice(list(LEAST))
        pid = fork_server.start(*argv, str(tmp_path / "cut"))
        fork_server.wait_for(aim, moments.randint(1, 3))
        time.sleep(moments.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        assert fork_server.end() == -signal.SIGKILL, fork_server.said
        met[fork_server.phase] += 1
        left = sorted(p.name for p in (tmp_path / "cut" / "checkpoints").glob("*"))
        print(
            f"kill {met.total()}: in {fork_server.phase}; {' '.join(left) or 'no checkpoint yet'}"
        )
    print(dict(met))
    fork_server.start(*argv, str(tmp_path / "cut"))
    assert fork_server.end() == 0, fork_server.said
    assert differences(tmp_path / "whole", tmp_path / "cut") == []
    steps = [row["step"] for row in rows(tmp_path / "cut") if "loss" in row]
    assert steps == list(range(1, 121))
    assert not list((tmp_path / "cut").rglob(".*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_all_of_a_runs_processes_has_it_save_and_end(
    number, fork_server, data, held_out, vit, tmp_path
):
    argv = [*everything(data, held_out, vit), "--steps", "60", "--save-every", "0", "--out"]
    fork_server.start(*argv, str(tmp_path / "whole"))
    assert fork_server.end() == 0, fork_server.said
    for times in (20, 15):
        pid = fork_server.start(*argv, str(tmp_path / "cut"))
        fork_server.wait_for("step", times)
        os.killpg(pid, number)  # its workers, too, as Ctrl-C and Slurm do
        assert fork_server.end() == 128 + number, fork_server.said
        assert f"Stopped by {number.name} after step" in fork_server.said
    fork_server.start(*argv, str(tmp_path / "cut"))
    assert fork_server.end() == 0, fork_server.said
    assert differences(tmp_path / "whole", tmp_path / "cut") == []


SIX_STEPS = ("--steps", "6", "--save-every", "2")


@pytest.fixture(scope="module")
def six_steps(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("six") / "run"
    train(run, data, *SIX_STEPS)
    return run


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("train_state.pt", "cut"),
        ("open_clip_model.safetensors", "changed"),
        ("open_clip_config.json", "gone"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    name, harm, data, six_steps, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(six_steps, run)
    damaged(run / "checkpoints" / "step_0000006" / name, harm)
    argv = ["train", "toy", "--out", str(run), "--data.shards", str(data)]
    cli.run([*argv, "--data.batch-size", "24", "--log-every", "1", *SIX_STEPS])
    assert "step_0000006 is damaged" in capsys.readouterr().out
    whole, cut = weights(six_steps), weights(run)
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert rows(six_steps) == rows(run)


def damaged(path, harm):
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(content[:1000])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def test_a_run_whose_checkpoints_are_all_damaged_says_so(data, tmp_path):
    train(tmp_path / "run", data, "--steps", "2")
    damaged(tmp_path / "run" / "checkpoints" / "step_0000002" / "train_state.pt", "cut")
    with pytest.raises(UserError, match=r"All checkpoints .* are damaged. Write --overwrite"):
        train(tmp_path / "run", data, "--steps", "2")


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_whole(data, six_steps, tmp_path):
    argv = [sys.executable, "-c", LIMITED_FILES, "train", "toy", "--out", str(tmp_path / "run")]
    argv += ["--data.shards", str(data), "--data.batch-size", "24", "--log-every", "1", *SIX_STEPS]
    stopped = subprocess.run(argv, capture_output=True, text=True, env=one_thread())
    assert stopped.returncode == 2, stopped.stderr
    assert "Cannot write the checkpoint of step 4" in stopped.stderr
    assert "Make room and run the same command again: the last one, step_0000002, is whole" in (
        stopped.stderr
    )
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_0000002"]
    train(tmp_path / "run", data, *SIX_STEPS)
    whole, cut = weights(six_steps), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


LIMITED_FILES = """
import resource, sys, torch
torch.set_num_threads(1)
from training import state
save = state.save_encoder
def limited(encoder, part, weights):
    save(encoder, part, weights)
    if part.name == ".step_0000004.part":  # from now on a file may have 10 kB
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
state.save_encoder = limited
from vlp.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_file_system_without_room_stops_the_run_and_with_room_it_goes_on(
    data, six_steps, tmp_path
):
    checkpoint = six_steps / "checkpoints" / "step_0000006"
    room = int(2.5 * sum(path.stat().st_size for path in checkpoint.iterdir()))
    argv = ["-m", "vlp", "train", "toy", "--data.shards", str(data), "--data.batch-size", "24"]
    argv += ["--log-every", "1", *SIX_STEPS, "--keep.last", "9"]
    script = SMALL_DISK.format(
        room=room, at=tmp_path / "small", kept=tmp_path / "run", run=shlex.join(argv)
    )
    (tmp_path / "small").mkdir()
    ran = subprocess.run(
        ["unshare", "-Urm", "bash", "-ec", script.replace("PYTHON", sys.executable)],
        capture_output=True,
        text=True,
        env=one_thread(),
    )
    if ran.returncode == 77:
        pytest.skip("no file system may be mounted here")
    assert ran.returncode == 0, ran.stderr
    assert "the checkpoint of step 6" in ran.stderr
    assert "the last one, step_0000004, is whole" in ran.stderr
    assert differences(six_steps, tmp_path / "run") == []


SMALL_DISK = """
mount -t tmpfs -o size={room} tmpfs {at} || exit 77
PYTHON {run} --out {at}/run && exit 1
test $(ls {at}/run/checkpoints | wc -l) = 2
mount -o remount,size=1g {at}
PYTHON {run} --out {at}/run
cp -r {at}/run {kept}
"""


HOOKED = """
import json, os, signal, sys, torch
torch.set_num_threads(1)
from training import loop
from vlp.cli import main
keys, last, take_step, steps = sys.argv[1], int(sys.argv[2]), loop.take_step, []
rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
def hooked(accelerator, encoder, optimizer, batch, *arguments, **options):
    with open(f"{keys}.{rank}", "a") as file:
        file.write(json.dumps(batch.keys) + chr(10))
    steps.append(0)
    if len(steps) == last and rank == processes - 1:  # one process alone gets the signal
        os.kill(os.getpid(), signal.SIGUSR1)
    return take_step(accelerator, encoder, optimizer, batch, *arguments, **options)
loop.take_step = hooked
main(sys.argv[3:])
"""


def in_processes(processes: int, script, *argv: str) -> subprocess.Popen:
    """Start a script, or vlp, with torch's launcher where there are several processes."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    start += [str(script)] if script else ["-m", "vlp"]
    return subprocess.Popen([*start, *argv], stderr=subprocess.PIPE, text=True, env=one_thread())


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes_and_the_same_global_batches(
    data, vit, tmp_path
):
    (tmp_path / "hooked.py").write_text(HOOKED)
    argv = ["train", "toy", "--data.shards", str(data), "--data.batch-size", "24", "--steps", "12"]
    argv += ["--model.name", str(vit), "--log-every", "1", "--precision", "fp32", "--out"]
    read = {}
    for name, parts in {"whole": [(1, 99)], "cut": [(1, 4), (2, 4), (1, 99)]}.items():
        read[name] = []
        for number, (processes, last) in enumerate(parts):
            keys = tmp_path / f"{name}{number}"
            words = [str(keys), str(last), *argv, str(tmp_path / name)]
            run = in_processes(processes, tmp_path / "hooked.py", *words)
            _, said = run.communicate()
            is_stopped = last < 99
            assert is_stopped == ("Stopped by SIGUSR1 after step" in said), said
            assert bool(run.returncode) == is_stopped, said
            found = [(tmp_path / f"{name}{number}.{rank}").read_text() for rank in range(processes)]
            per_rank = [[json.loads(line) for line in text.splitlines()] for text in found]
            read[name] += [sorted(chain(*step)) for step in zip(*per_rank, strict=True)]
    assert read["cut"] == read["whole"]
    assert len(read["whole"]) == 12
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    apart = max((one[name] - other[name]).abs().max().item() for name in one)
    print(f"largest difference of a weight: {apart:.2g}")
    assert 0 < apart < REDUCTION_ERROR
    for a, b in zip(rows(tmp_path / "whole"), rows(tmp_path / "cut"), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc what is running")
@pytest.mark.parametrize("victim", ["process", "its worker"])
def test_when_a_process_of_three_dies_all_end_within_a_minute_and_say_so(victim, data, tmp_path):
    argv = ["train", "toy", "--data.shards", str(data), "--data.batch-size", "24"]
    argv += ["--steps", "100000", "--save-every", "5", "--log-every", "1", "--data.workers", "1"]
    launcher = in_processes(3, None, *argv, "--out", str(tmp_path / "run"))
    metrics, end = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 200
    while not (metrics.is_file() and metrics.read_text().count("\n") > 6):
        assert launcher.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    ranks = children(launcher.pid)
    everyone = [*ranks, *(worker for rank in ranks for worker in children(rank))]
    assert len(ranks) == 3
    os.kill(ranks[1] if victim == "process" else children(ranks[1])[0], signal.SIGKILL)
    killed = time.monotonic()
    _, said = launcher.communicate(timeout=60)
    while any(Path(f"/proc/{pid}").exists() for pid in everyone):
        assert time.monotonic() - killed < 60
        time.sleep(0.1)
    print(f"all ended after {time.monotonic() - killed:.1f} s")
    assert launcher.returncode
    is_process = victim == "process"
    assert said.count("vlp: Another process of the run ended") == is_process, said
    assert said.count("vlp: A worker that reads samples was killed") == (not is_process), said
    report = (tmp_path / "run" / "report.html").read_text()
    assert ("another process of the run" if is_process else "A worker that reads") in report
    assert said.count("Traceback (most") == 1, said  # the launcher's own


def children(pid: int) -> list[int]:
    """Return the ids of the processes that a process started."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_has_ended(data, tmp_path):
    out = tmp_path / "run"
    train(out, data, "--steps", "1")
    code = "import sys, pathlib; from vlp.output import lock_folder; "
    code += "l = lock_folder(pathlib.Path(sys.argv[1])); "
    code += "print('held', flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="Another process writes"):
            train(out, data, "--steps", "1")
        other.stdin.close()
    assert train(out, data, "--steps", "1")["steps"] == 1
