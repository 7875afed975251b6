"""Run a function over many tasks: in this process, in a pool of processes, or on Ray.

A task is small and names files; what it makes goes to files of its own, whole or not there, so a
second run does only what is missing. Nothing depends on which worker does a task, how many there
are, or in which order they end.
"""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeVar

from vlp.console import progress, warn
from vlp.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
ATTEMPTS = 3
"""How often a task is begun whose worker is killed, before the run gives up."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where tasks run."""

    kind: Literal["pool", "inline", "ray"] = "pool"
    """``pool``: processes of this machine; ``inline``: this process; ``ray``: a cluster."""
    workers: int | None = None
    """How many tasks at once; None: one for each GPU, or else for each core."""
    address: str | None = None
    """Of a Ray cluster, as ``ray://head:10001`` or ``auto``; None starts one on this machine."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UserError(f"workers={self.workers} does no work. Give 1 or more.")
        if self.address and self.kind != "ray":
            raise UserError(f"--address {self.address} goes with --engine ray.")

    def run(
        self,
        work: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        what: str,
        on_gpu: bool = False,
    ) -> Iterator[Result]:
        """Yield the result of each task, in the order of the tasks.

        Args:
            work: What is done with a task. It goes to each worker as pickle, once; what it loads,
                such as a model, it keeps for the next task of the same process.
            tasks: Few bytes each.
            what: A word for the progress bar.
            on_gpu: The work runs a model: a worker for each GPU where there are any.

        Raises:
            UserError: A task raised it.
            RuntimeError: A task failed for another reason, or lost its worker ``ATTEMPTS`` times.
        """
        number = min(len(tasks), self.num_workers(on_gpu=on_gpu))
        with progress(len(tasks), what) as advance:
            if self.kind == "inline" or number < 2:
                results = _inline(work, tasks)
            else:
                results = _pooled(work, tasks, number)
            for result in results:
                advance()
                yield result

    def num_workers(self, *, on_gpu: bool = False) -> int:
        """Return how many tasks run at once on this machine."""
        return self.workers or (on_gpu and _num_gpus()) or len(os.sched_getaffinity(0))


def _inline(work: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    with _one_thread():
        yield from map(work, tasks)


def _pooled(
    work: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[Result]:
    """Yield results in order; tasks whose worker was killed begin anew in other processes."""
    attempts = [0] * len(tasks)
    done: dict[int, Result] = {}
    following = 0
    while following < len(tasks):
        pool = _open_pool(work, workers)
        waiting: deque[tuple[int, Future]] = deque()
        left = iter([n for n in range(following, len(tasks)) if n not in done])
        try:
            for number in islice(left, 2 * workers):
                waiting.append((number, pool.submit(_do, tasks[number])))
            while waiting:
                number, future = waiting[0]
                done[number] = future.result()
                waiting.popleft()
                for another in islice(left, 1):
                    waiting.append((another, pool.submit(_do, tasks[another])))
                while following in done:
                    yield done.pop(following)
                    following += 1
        except BrokenProcessPool:
            for number, future in waiting:
                if future.done() and not future.exception():
                    done[number] = future.result()
                    continue
                attempts[number] += 1
                if attempts[number] == ATTEMPTS:
                    raise RuntimeError(
                        f"The worker of {tasks[number]} was killed {ATTEMPTS} times; is there "
                        f"memory enough for --workers {workers}?"
                    ) from None
            warn("A worker was killed; its tasks begin anew.")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _open_pool(work: Callable, workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("forkserver")
    gpus = context.SimpleQueue()
    for number in range(workers):
        gpus.put(number)
    return ProcessPoolExecutor(workers, context, _begin, (work, gpus))


_work: Callable | None = None


def _begin(work: Callable, gpus: Any) -> None:
    """Make a process ready for tasks: one thread, one GPU, and an end with the run's."""
    global _work
    number = gpus.get()
    if _num_gpus() > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number % _num_gpus())
    run = multiprocessing.parent_process()
    assert run is not None
    threading.Thread(target=_end_with, args=(run,), daemon=True).start()
    _one_thread().__enter__()
    _work = work


def _do(task: Any) -> Any:
    assert _work is not None
    return _work(task)


def _end_with(run: Any) -> None:
    run.join()
    os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute in one thread: as many as there are would change the last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()
