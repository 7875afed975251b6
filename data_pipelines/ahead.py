"""Work on items in threads, ahead of use and in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int = 4, ahead: int = 64
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in order, at most ``ahead`` of them before use.

    After an error nothing that waits is begun, and what has begun is not waited for: it ends with
    the process, while threads of a pool would keep an interrupted one alive.
    """
    left, waiting = iter(items), deque[Future[Result]]()
    work = SimpleQueue()

    def begin(count: int) -> None:
        for item in islice(left, count):
            waiting.append(Future())
            work.put((waiting[-1], item))

    for _ in range(threads):
        Thread(target=_work, args=(function, work), daemon=True).start()
    try:
        begin(ahead)
        while waiting:
            result = waiting.popleft().result()
            begin(1)
            yield result
    finally:
        for future in waiting:
            future.cancel()
        for _ in range(threads):
            work.put(None)


def _work(function: Callable[[Item], Result], work: SimpleQueue) -> None:
    while task := work.get():
        future, item = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(item))
            except BaseException as error:
                future.set_exception(error)
