"""Run a function over many tasks: in this process, in a pool of processes, or on Ray.

A task is small and names files; what it makes goes to files of its own, whole or not there, so a
second run does only what is missing. Nothing depends on which worker does a task, how many there
are, or in which order they end. The one door to Ray.
"""

import os
import pickle
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from data_pipelines.workers import (
    MODEL,
    Crew,
    Done,
    Failed,
    Here,
    Lost,
    Processes,
    Worker,
    preload,
)
from vlp.console import progress, warn
from vlp.errors import UserError, first_line

Task = TypeVar("Task")
Result = TypeVar("Result")
ATTEMPTS = 3
"""How often a task is begun whose worker is killed, before the run gives up."""
SHOWN = 5
"""Failed tasks that an error names."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where tasks run."""

    kind: Literal["pool", "inline", "ray"] = "pool"
    """``pool``: processes of this machine; ``inline``: this process; ``ray``: a cluster."""
    workers: int | None = None
    """How many tasks at once; None: one for each GPU, or else for each core."""
    address: str | None = None
    """Of a Ray cluster, as ``head:6379``, or ``auto`` on one of its nodes; None starts one here."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UserError(f"workers={self.workers} does no work. Give 1 or more.")
        if self.address and self.kind != "ray":
            raise UserError(f"--address {self.address} goes with --engine ray.")

    def begin_early(self, module: str) -> None:
        """Let a pool that runs a model import the work's module while this process does."""
        if self.kind == "pool" and self.workers != 1:
            preload(module, *MODEL)

    def run(
        self,
        work: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        what: str,
        on_gpu: bool = False,
    ) -> Iterator[Result]:
        """Yield the result of each task, in the order of the tasks.

        A task that fails does not keep the others from being done, so that who mends it runs it
        alone.

        Args:
            work: What is done with a task. It goes to each worker as pickle, once; what it loads,
                such as a model, it keeps for the next task of the same process.
            tasks: Few bytes each; ``str`` names one to people.
            what: A word for the progress bar.
            on_gpu: The work runs a model: in one thread of torch, and on a worker for each GPU
                where there are any.

        Raises:
            UserError: A task raised it; no other is begun.
            RuntimeError: Tasks failed for other reasons, or lost their worker ``ATTEMPTS`` times.
        """
        if not tasks:
            return
        with progress(len(tasks), what) as advance:
            crew, workers = self._crew(work, len(tasks), on_gpu=on_gpu)
            with closing(crew):
                yield from _Run(crew, tasks, workers, advance).results()

    def _crew(self, work: Callable, count: int, *, on_gpu: bool) -> tuple[Crew, int]:
        """Return who does so many tasks, and how many they are."""
        if self.kind == "ray":
            actors = Actors(work, self, on_gpu=on_gpu)
            return actors, min(count, actors.most)
        gpus = _num_gpus() if on_gpu else 0
        workers = min(count, self.workers or gpus or len(os.sched_getaffinity(0)))
        if self.kind == "inline" or workers == 1:
            return Here(work, on_gpu=on_gpu), 1
        return Processes(work, on_gpu=on_gpu, gpus=gpus), workers


@dataclass
class _Run(Generic[Task, Result]):
    """Tasks on their way through a crew."""

    crew: Crew
    tasks: Sequence[Task]
    workers: int
    advance: Callable[[], None]
    waiting: deque[int] = field(default_factory=deque)
    """Tasks that no worker is at, in the order in which they are begun."""
    idle: list[int] = field(default_factory=list)
    """Workers that are ready and have nothing to do."""
    at: dict[int, int] = field(default_factory=dict)
    """By worker, its task."""
    lost: Counter[int | None] = field(default_factory=Counter)
    """How often the worker of a task was lost; of none, before it was ready."""
    done: dict[int, Result] = field(default_factory=dict)
    """Results whose turn has not come."""
    failed: dict[int, Failed] = field(default_factory=dict)

    def results(self) -> Iterator[Result]:
        """Yield results in order."""
        self.waiting.extend(range(len(self.tasks)))
        for worker in range(self.workers):
            self.crew.start(worker)
        following = num_ended = 0
        while num_ended < len(self.tasks):
            for worker, said in self.crew.hear():
                num_ended += self._ends_task(worker, said)
                while following in self.done:
                    yield self.done.pop(following)
                    following += 1
        if self.failed:
            raise self._failure()

    def _ends_task(self, worker: int, said: Done | Failed | Lost) -> bool:
        """Take in what a worker said, give it something to do, and return whether a task ended."""
        task = self.at.pop(worker, None)
        if isinstance(said, Failed) and (said.ends_all or task is None):
            raise said.ends_all or RuntimeError(f"No task can be begun: {said.trace}")
        if isinstance(said, Lost):
            self._begin_anew(worker, task, said)
            return False
        self.idle.append(worker)
        self._give_out()
        if task is None:
            return False
        if isinstance(said, Failed):
            self.failed[task] = said
        else:
            self.done[task] = said.result
        self.advance()
        return True

    def _give_out(self) -> None:
        while self.idle and self.waiting:
            worker = self.idle.pop()
            self.at[worker] = self.waiting.popleft()
            self.crew.give(worker, self.tasks[self.at[worker]])

    def _begin_anew(self, worker: int, task: int | None, said: Lost) -> None:
        self.lost[task] += 1
        whose = "Workers" if task is None else f"The worker of {self.tasks[task]}"
        if self.lost[task] == ATTEMPTS:
            raise RuntimeError(
                f"{whose} {said.how} {ATTEMPTS} times. If there is too little memory, fewer "
                f"--workers need less of it."
            )
        warn(f"{whose} {said.how}; another begins anew.")
        self.crew.start(worker)
        if task is not None:
            self.waiting.appendleft(task)
            self._give_out()  # a cluster may have no room for the other worker

    def _failure(self) -> RuntimeError:
        """Return one error that names the failed tasks, and shows where the first did."""
        failed = sorted(self.failed.items())
        reasons = [f"{self.tasks[task]}: {said.reason}" for task, said in failed]
        more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
        error = RuntimeError(
            f"{len(reasons)} of {len(self.tasks)} tasks failed, the others are done: "
            f"{'; '.join(reasons[:SHOWN])}{more}."
        )
        error.add_note(f"The first of them:\n{failed[0][1].trace}")
        return error


class Actors(Crew):
    """A crew of Ray actors; each holds a GPU where the work runs a model and there are any."""

    def __init__(self, work: Callable, engine: Engine, *, on_gpu: bool) -> None:
        self._ray = ray = _import_ray()
        try:
            ray.init(
                address=engine.address,
                num_cpus=None if engine.address else engine.workers,
                include_dashboard=None if engine.address else False,
                log_to_driver=False,
                logging_level="ERROR",
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"reached at {engine.address}" if engine.address else "started here"
            raise UserError(f"Ray cannot be {where}: {first_line(error)}.") from None
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if on_gpu else 0
        room = gpus or int(resources["CPU"])
        self.most = min(room, engine.workers or room)
        """How many there are at most."""
        actor = ray.remote(num_cpus=1, num_gpus=int(gpus > 0))(Worker)
        self._begin = partial(actor.remote, ray.put(pickle.dumps(work)), on_gpu)
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, int] = {}

    def start(self, worker: int) -> None:
        """Ask for an actor; it says that it is ready once there is room for it."""
        self._actors[worker] = self._begin()
        self._calls[self._actors[worker].begin.remote()] = worker

    def give(self, worker: int, task: Any) -> None:
        """Call an actor."""
        self._calls[self._actors[worker].do.remote(task)] = worker

    def hear(self) -> Iterator[tuple[int, Done | Failed | Lost]]:
        """Wait until a call ends, or its actor or node does."""
        for call in self._ray.wait(list(self._calls))[0]:
            worker = self._calls.pop(call)
            try:
                yield worker, self._ray.get(call)
            except self._ray.exceptions.RayActorError:
                yield worker, Lost("was lost")

    def close(self) -> None:
        """Leave the cluster, which ends the actors; and the cluster, where it was started here."""
        self._ray.shutdown()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what runs here is nobody's business
    try:
        import ray
    except ImportError:
        raise UserError('--engine ray needs Ray. Run: pip install "vlp[ray]"') from None
    return ray


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()
