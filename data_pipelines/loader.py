"""Batches of training samples from worker processes. The loader's state is one number."""

import math
import mmap
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count, zip_longest
from multiprocessing.sharedctypes import RawValue
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data_pipelines.faults import Faults
from data_pipelines.fetch_ahead import PARTS_AHEAD
from data_pipelines.reader import Part, Reader
from data_pipelines.tally import Tally
from vlp.errors import UserError, first_line
from vlp.types import Batch

RING = PARTS_AHEAD + 1
"""Batches of pictures that the memory shared with workers has room for: one is being copied."""
FIRST_READS = 200
"""Samples before the share of bad ones is judged while reading goes on."""


@dataclass
class Loader:
    """Batches by the plan, made by worker processes ahead of use; the same for any number of them.

    Of the rows of a batch, worker ``k`` of ``n`` makes every n-th, from the k-th on.
    """

    reader: Reader
    process: int = 0
    num_processes: int = 1
    workers: int = 2
    """Worker processes; 0 reads in this one."""
    max_bad: float = 0.05
    """Share of bad samples above which reading stops."""
    tally: Tally = field(default_factory=Tally)
    """What was counted so far: here, and by the other processes until they last shared it."""
    _unshared: Tally = field(default_factory=Tally)
    _recent: Tally = field(default_factory=Tally)
    _since: float = field(default_factory=time.perf_counter)

    def batches(self, samples_seen: int) -> Generator[Batch]:
        """Yield the batches that follow ``samples_seen``, without end.

        Raises:
            UserError: Too many samples are bad, a shard gives none, or a worker was killed.
        """
        workers = min(self.workers, self._num_rows)
        rings, is_over = self._memory(workers), RawValue("b", 0)
        parts = self._parts(samples_seen, rings, workers, is_over)
        try:
            for number in count():
                found = [self._checked(_next(parts)) for _ in range(workers or 1)]
                start = time.perf_counter()
                batch = _assembled(found, [ring[number % RING] for ring in rings])
                self._recent.seconds["hand over"] += time.perf_counter() - start
                yield batch
        finally:
            is_over.value = 1
            # At once: left to its last reference, an error's traceback would keep workers alive.
            getattr(parts, "_shutdown_workers", lambda: None)()

    def faults(self) -> Faults:
        """Return what was wrong in the headers and with the samples that were met so far."""
        found = Faults()
        for source in self.reader.sources:
            found.merge(source.faults.as_dict())
        for _, headers in sorted(self.tally.headers.items()):
            found.merge(headers)
        for fault in sorted(self.tally.faults):
            found.add(fault.reason, fault.shard, fault.key)
        return found

    def ledger(self) -> dict[str, Any]:
        """Return what was counted so far as plain data, for a checkpoint."""
        return self.tally.as_record()

    def take_up(self, ledger: dict[str, Any]) -> None:
        """Go on counting where a run stopped, by the ledger of its checkpoint, if it has one."""
        if ledger:
            self.tally.add(Tally.from_record(ledger))

    def share(self, gather: Callable[[list[Tally]], list[Tally]]) -> None:
        """Bring together what every process counted since this was last done, and judge it.

        Args:
            gather: Returns the lists of all processes as one, in their order.

        Raises:
            UserError: Too many samples are bad, on all processes alike.
        """
        for process, tally in enumerate(gather([self._unshared])):
            if process != self.process:
                self.tally.add(tally)
        self._unshared = Tally()
        self.judge()

    def judge(self, *, first_reads: int = FIRST_READS) -> None:
        """Raise UserError where too many are bad of what was read, if that is as much as this."""
        bad, reads = self.tally.substituted, self.tally.reads
        if reads >= first_reads and bad > self.max_bad * reads:
            raise UserError(
                f"{bad} of {reads} samples cannot be read and had to be replaced; at most "
                f"{self.max_bad:.0%} may be. Faults: {self.faults().summary()}. Mend the shards, "
                f"or write --data.max-bad {min(1.0, bad / reads + 0.05):.2f}."
            )

    def speed(self) -> dict[str, float]:
        """Return what reading took since last asked.

        Milliseconds of a worker per sample for each stage, MB per second of each source, and the
        slowest read in seconds.
        """
        now, tally = time.perf_counter(), self._recent
        figures = {
            f"data/{stage.replace(' ', '_')}_ms": 1000 * seconds / max(1, tally.reads)
            for stage, seconds in tally.seconds.items()
        }
        for source, num_bytes in tally.bytes_read.items():
            figures[f"data/source_{source}_mb_per_second"] = num_bytes / 1e6 / (now - self._since)
        figures["data/slowest_read_s"] = tally.slowest[0]
        self._recent, self._since = Tally(), now
        return figures

    @property
    def _num_rows(self) -> int:
        """Pairs of a batch that are this process's."""
        return self.reader.plan.batch_size // self.num_processes

    def _memory(self, workers: int) -> list[UInt8[Tensor, "slots _views batch _height _width 3"]]:
        """Return memory that workers write pictures into, again and again, for each of their sizes.

        New memory for each batch would cost more than what is written: each page of it faults, here
        and in the worker. Channels last: as pictures come from resizing, and as convolutions take
        them fastest.
        """
        rings = []
        for views, size in self.reader.view_sizes:
            shape = (RING, views, self._num_rows, *size, 3)
            if workers and _context() == "fork":  # not of /dev/shm, small in many containers
                shared = mmap.mmap(-1, math.prod(shape))
                rings.append(torch.frombuffer(shared, dtype=torch.uint8).view(shape))
            else:
                memory = torch.empty(shape, dtype=torch.uint8)
                rings.append(memory.share_memory_() if workers else memory)
        return rings

    def _parts(
        self, samples_seen: int, rings: list[Tensor], workers: int, is_over: Any
    ) -> Iterator["Part | Failure"]:
        """Start the workers; return their parts, one of each in turn."""
        with warnings.catch_warnings():  # the user says how many processes there shall be
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            stream = DataLoader(
                _Stream(
                    replace(self.reader), samples_seen, self.process, self.num_processes, rings
                ),
                batch_size=None,
                collate_fn=_as_it_is,
                num_workers=workers,
                prefetch_factor=PARTS_AHEAD if workers else None,
                multiprocessing_context=_context() if workers else None,
                worker_init_fn=partial(_outlast_signals, is_over),
            )
            return iter(stream)

    def _checked(self, part: "Part | Failure") -> Part:
        for tally in (self.tally, self._recent, self._unshared):
            tally.add(part.tally)
        if isinstance(part, Failure):
            raise part.error
        if self.num_processes == 1:  # several are judged together, when they share their counts
            self.judge()
        return part


class Failure(NamedTuple):
    """What a worker says last: why it cannot go on, and what it has counted."""

    error: UserError
    tally: Tally


class _Stream(IterableDataset):
    """A worker's parts of the batches, in order; an error for the user comes as an item.

    Pictures go into the slots of ``rings`` in turn. A worker fills a slot again when it is asked
    for the part ``RING`` further on, which is after the batch was copied out of it.
    """

    def __init__(
        self, reader: Reader, start: int, process: int, num_processes: int, rings: list[Tensor]
    ) -> None:
        self.reader, self.start, self.rings = reader, start, rings
        self.process, self.num_processes = process, num_processes

    def __iter__(self) -> Iterator[Part | Failure]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        first = self.start + self.process + self.num_processes * worker
        end, step = self.start + self.reader.plan.batch_size, self.num_processes * workers
        for number in count():
            pixels = [ring[number % RING, :, worker::workers] for ring in self.rings]
            tally = Tally()
            try:
                part = self.reader.part(range(first, end, step), pixels, tally)
            except UserError as error:
                yield Failure(error, tally)
                return
            yield part
            first, end = (edge + self.reader.plan.batch_size for edge in (first, end))


def _next(parts: Iterator[Part | Failure]) -> Part | Failure:
    try:
        return next(parts)
    except RuntimeError as error:
        if told := worker_error(error):
            return Failure(told, Tally())
        raise
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # killed while it handed over
        return Failure(_killed(error), Tally())


def worker_error(error: RuntimeError) -> UserError | None:
    """Return what to tell where a worker was killed, which torch raises wherever it is just then.

    None: the error is another one.
    """
    is_killed = "DataLoader worker" in str(error) and "Traceback" not in str(error)
    return _killed(error) if is_killed else None


def _killed(error: Exception) -> UserError:
    return UserError(
        f"A worker that reads samples was killed ({first_line(error)}). If memory ran out, write "
        f"fewer --data.workers or a smaller batch."
    )


def _outlast_signals(is_over: Any, _: int) -> None:
    """Let a worker end when its trainer does, and not by a signal that all processes got.

    Ctrl-C, Slurm and ``kill`` may signal workers, too, and a trainer without them could not save.
    A function and not SIG_IGN, which the commands that a worker starts would inherit.
    """

    def hear(number: int, _: FrameType | None) -> None:
        if number == signal.SIGTERM and is_over.value:  # from torch, after patience with a worker
            os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, hear)


def _as_it_is(part: Any) -> Any:
    return part


def _context() -> str | None:
    """Return how workers start: as forks, which need not load everything again."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else None


def _assembled(
    parts: Sequence[Part], pixels: Sequence[UInt8[Tensor, "_views batch _height _width 3"]]
) -> Batch:
    """Return one batch of the workers' parts, in pinned memory where there is a GPU."""
    images, *of_teacher = map(_copied, pixels)
    # [views, batch, length], a row from each part in turn
    tokens = torch.from_numpy(np.stack(_in_turn([[*part.tokens] for part in parts]), 1))
    return Batch(
        images=images[0],
        tokens=tokens[0],
        keys=_in_turn([part.keys for part in parts]),
        group=torch.tensor(_in_turn([part.group for part in parts])),
        seed=torch.tensor(_in_turn([part.seed for part in parts])),
        image_views=images[1:] if len(images) > 1 else None,
        text_views=tokens[1:] if len(tokens) > 1 else None,
        hard_tokens=_rows_in_turn([part.hard_tokens for part in parts]),
        hard_group=_rows_in_turn([part.hard_group for part in parts]),
        teacher_images=of_teacher[0][0] if of_teacher else None,
        teacher_tokens=_rows_in_turn([part.teacher_tokens for part in parts]),
        teacher_features=_rows_in_turn([part.teacher_features for part in parts]),
    )


def _copied(
    pixels: UInt8[Tensor, "views batch height width 3"],
) -> UInt8[Tensor, "views batch 3 height width"]:
    # Only from pinned memory can a GPU fetch while it computes.
    images = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=torch.cuda.is_available())
    return images.copy_(pixels).movedim(-1, 2)


def _rows_in_turn(parts: Sequence[np.ndarray | None]) -> Tensor | None:
    """Return an array of a row from each part in turn; None where the parts are."""
    rows = _in_turn([[*part] for part in parts if part is not None])
    return torch.from_numpy(np.stack(rows)) if rows else None


def _in_turn(parts: Sequence[list]) -> list:
    """Return an item from each list in turn."""
    rows = zip_longest(*parts, fillvalue=_MISSING)
    return [item for item in chain.from_iterable(rows) if item is not _MISSING]


_MISSING = object()
