"""Work on items in threads, ahead of use and in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int = 4, ahead: int = 64
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in order, at most ``ahead`` of them before use."""
    left, waiting = iter(items), deque[Future[Result]]()
    pool = ThreadPoolExecutor(threads)
    try:
        waiting.extend(pool.submit(function, item) for item in islice(left, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(left, 1))
            yield result
    finally:  # after an error nothing that waits is begun
        pool.shutdown(cancel_futures=True)
