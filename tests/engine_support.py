"""Work that engines are tested with, and what is left of the processes that do it."""

import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from vlp.errors import UserError
from vlp.output import write_bytes


@dataclass(frozen=True)
class Work:
    """Writes what torch computes for a task to a file of its own and returns its sum."""

    folder: Path
    fails: tuple[int, ...] = ()
    refuses: tuple[int, ...] = ()
    fills_the_disk: tuple[int, ...] = ()
    kills: int = 0
    """How often the process of task 3 is killed before the task is done."""
    slow: float = 0.0
    """Seconds that the first task takes."""
    pause: float = 0.0
    """Seconds that each takes."""

    def __call__(self, task: int) -> float:
        time.sleep(self.slow if task == 0 else self.pause)
        if task in self.fails:
            raise ValueError(f"{task} is a bad number.\nAnd more.")
        if task in self.refuses:
            raise UserError(f"{task} is refused. Give another.")
        if task in self.fills_the_disk:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if task == 3:
            self._die()
        rows = torch.randn(300, 400, generator=torch.Generator().manual_seed(task))
        product = rows @ rows.T
        write_bytes(self.folder / f"{task}.bin", product.numpy().tobytes())
        (self.folder / f"{task}.threads").write_text(str(torch.get_num_threads()))
        return float(product.sum())

    def _die(self) -> None:
        deaths = self.folder / "deaths"
        earlier = len(deaths.read_text()) if deaths.exists() else 0
        if earlier < self.kills:
            deaths.write_text("x" * (earlier + 1))
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Sleep:
    """Writes down the id of its process and sleeps."""

    folder: Path

    def __call__(self, task: int) -> None:
        (self.folder / str(os.getpid())).touch()
        time.sleep(60)


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def is_running(pid):
    """Return whether a process is there that has not ended."""
    return bool(_state(pid)) and _state(pid)[0] != "Z"


def group(session):
    """Return the processes of a session that are there yet."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if _state(pid)[3:4] == [str(session)] and is_running(pid)]


def _state(pid):
    """Return state, parent, group and session of a process; nothing of one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


if __name__ == "__main__":
    import sys

    from data_pipelines.engine import Engine

    try:
        folder, kind = Path(sys.argv[1]), sys.argv[2]
        list(Engine(kind=kind, workers=2).run(Sleep(folder), range(9), what="sleep"))
    except KeyboardInterrupt:
        sys.exit(130)
