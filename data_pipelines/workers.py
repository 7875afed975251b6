"""What does the tasks of an engine: in this process, or in processes that may be killed.

A crew is some workers by number. Each says when it is ready, and then how each task ended that it
was given. This file is all that a new process imports before it hears of Ctrl-C no more.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from vlp.errors import NO_ROOM, UserError, first_line

MODEL = ["vlp.encoder"]
"""What takes longest to import for work that runs a model."""


class Done(NamedTuple):
    """A task is done; or, before the first task, a worker is ready."""

    result: Any = None


class Failed(NamedTuple):
    """A task ended with an error."""

    reason: str
    trace: str
    ends_all: Exception | None
    """The error, where other tasks would meet it, too, and a person must mend it."""


class Lost(NamedTuple):
    """A worker is gone, and what it was at is not done."""

    how: str


class Crew(ABC):
    """Workers by number, each at one task at a time."""

    @abstractmethod
    def start(self, worker: int) -> None:
        """Begin a worker, also in place of one that was lost."""

    @abstractmethod
    def give(self, worker: int, task: Any) -> None:
        """Let a worker that has nothing to do begin a task."""

    @abstractmethod
    def hear(self) -> Iterator[tuple[int, Done | Failed | Lost]]:
        """Wait until workers have something to say, and yield it."""

    @abstractmethod
    def close(self) -> None:
        """End every worker at once, whatever it is at."""


def attempt(work: Callable[[Any], Any], task: Any) -> Done | Failed:
    """Do a task and return how it ended."""
    try:
        return Done(work(task))
    except Exception as error:
        ends_all = isinstance(error, UserError) or getattr(error, "errno", None) in NO_ROOM
        reason = f"{type(error).__name__}: {first_line(error)}"
        return Failed(reason, traceback.format_exc(), error if ends_all else None)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread: as many as there are would change the last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Here(Crew):
    """A crew of one: this process."""

    def __init__(self, work: Callable[[Any], Any], *, on_gpu: bool) -> None:
        self._work, self._on_gpu = work, on_gpu

    def start(self, worker: int) -> None:
        """Be ready."""
        self._next = Done

    def give(self, worker: int, task: Any) -> None:
        """Keep a task for ``hear``."""
        self._next = partial(attempt, self._work, task)

    def hear(self) -> Iterator[tuple[int, Done | Failed]]:
        """Do the task."""
        with one_thread() if self._on_gpu else nullcontext():  # torch takes seconds to load
            outcome = self._next()
        yield 0, outcome

    def close(self) -> None:
        """Do nothing."""


class Worker:
    """What runs in a process of its own, or is a Ray actor."""

    def __init__(self, work: bytes, on_gpu: bool, gpu: int | None = None) -> None:
        self._pickled, self._on_gpu, self._gpu = work, on_gpu, gpu

    def begin(self) -> Done | Failed:
        """Make the process ready for tasks: the work and, for a model, one thread and one GPU."""
        return attempt(self._begin, None)

    def do(self, task: Any) -> Done | Failed:
        """Do a task."""
        return attempt(self._work, task)

    def _begin(self, _: None) -> None:
        if self._on_gpu:
            import torch

            torch.set_num_threads(1)
            if self._gpu is not None:
                torch.cuda.set_device(self._gpu)
        self._work = pickle.loads(self._pickled)


def preload(*modules: str) -> None:
    """Let the process that workers are forked from import modules while this one goes on.

    It imports those of the first call, and workers the others.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload([*modules])
    forkserver.ensure_running()


class Processes(Crew):
    """A crew of processes of this machine, forked from one that has imported what they need."""

    def __init__(self, work: Callable[[Any], Any], *, on_gpu: bool, gpus: int) -> None:
        self._context = multiprocessing.get_context("forkserver")
        preload(type(work).__module__, *(MODEL if on_gpu else []))
        self._pickled, self._on_gpu, self._gpus = pickle.dumps(work), on_gpu, gpus
        self._workers: dict[Connection, tuple[int, BaseProcess]] = {}

    def start(self, worker: int) -> None:
        """Fork a process."""
        ours, theirs = self._context.Pipe()
        gpu = worker % self._gpus if self._gpus else None
        process = self._context.Process(
            target=_serve, args=(theirs, self._pickled, self._on_gpu, gpu), daemon=True
        )
        process.start()
        theirs.close()  # so that ours ends when the process does
        self._workers[ours] = worker, process

    def give(self, worker: int, task: Any) -> None:
        """Send a task; that the worker is gone is heard later."""
        for connection, (number, _) in self._workers.items():
            if number == worker:
                with suppress(BrokenPipeError, ConnectionResetError):
                    connection.send(task)

    def hear(self) -> Iterator[tuple[int, Done | Failed | Lost]]:
        """Wait for a message or the end of a process."""
        for connection in wait(list(self._workers)):
            assert isinstance(connection, Connection)
            worker, process = self._workers[connection]
            try:
                yield worker, connection.recv()
            except (EOFError, OSError):
                del self._workers[connection]
                process.join()
                yield worker, Lost(f"ended with exit code {process.exitcode}")

    def close(self) -> None:
        """Kill every process: files are whole or not there, so nothing is lost but time."""
        for _, process in self._workers.values():
            process.kill()
        for connection, (_, process) in self._workers.items():
            process.join()
            connection.close()
        self._workers = {}


def _serve(connection: Connection, work: bytes, on_gpu: bool, gpu: int | None) -> None:
    """Do the tasks that come, until the run ends in whatever way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run hears of Ctrl-C, and ends its workers
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    worker = Worker(work, on_gpu, gpu)
    connection.send(worker.begin())
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            connection.send(worker.do(connection.recv()))


def _end_with_the_run() -> None:
    run = multiprocessing.parent_process()
    assert run is not None
    run.join()
    os._exit(1)
