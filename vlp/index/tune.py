"""The least effort with which an index reaches a recall: tried on queries, by bisection."""

import math
import time
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import faiss
import numpy as np
from jaxtyping import Float

from vlp.index.candidates import lists_of
from vlp.index.plan import K, Plan
from vlp.index.segment import Segment

TIE = 1e-5
"""Cosines that differ by less are equal: last bits depend on how rows are walked."""
EFFORTS = sorted({2**power * part // 4 for power in range(1, 13) for part in (4, 5, 6, 7)})
"""2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, ... 7168"""
REFINE = (1, 2, 4, 8, 16, 32, 64)
GLANCED = 20
"""Queries whose time tells whether a setting is too slow to be tuned."""
FIRST = 100
"""Queries that a setting which is far from the target is left after."""
CONFIDENCE = 1.64
"""Standard errors above the target that the tuning queries must reach, so that others do, too, 19
times of 20."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Queries, and how near the rows are that exact search finds."""

    vectors: Float[np.ndarray, "queries dim"]
    cosines: Float[np.ndarray, "queries k"]
    """Of the nearest rows, falling."""

    def recall(self, segment: Segment) -> Float[np.ndarray, "queries"]:
        """Return for each query the share of its nearest rows that a segment finds.

        Rows that are as near as the last of them count: of equal pictures, any will do.
        """
        found, _ = segment.search(self.vectors, self.cosines.shape[1])
        return (found >= self.cosines[:, -1:] - TIE).mean(1)

    def first(self, count: int) -> "Questions":
        """Return so many of the queries."""
        return Questions(vectors=self.vectors[:count], cosines=self.cosines[:count])


def settings(
    segment: Segment, tune: Questions, recall: float, limit: float = math.inf
) -> Iterator[tuple[Plan, bool]]:
    """Yield for each number of candidates the least effort that reaches the recall.

    Where none does in ``limit`` milliseconds a query, about, the greatest effort with most
    candidates, and that it is not enough.
    """
    plan = segment.plan
    if plan.is_exact:
        yield plan, True
        return

    def tried(effort: int, refine: int = 1) -> Segment:
        return replace(segment, plan=replace(plan, effort=effort, refine=refine))

    def time_of(effort: int) -> float:
        return milliseconds(tried(effort), tune.vectors[:GLANCED])

    efforts = _efforts(plan)
    efforts = efforts[: max(1, bisect(efforts, limit, key=time_of))]
    least = len(efforts)
    for refine in REFINE if plan.reranks else (1,):
        low, high = 0, least  # the least that is enough lies in [low, high]
        if _is_far(tried(efforts[min(least, len(efforts) - 1)], refine), tune, recall):
            continue
        while low < high:
            middle = (low + high) // 2
            is_enough = _is_enough(tried(efforts[middle], refine), tune, recall)
            low, high = (low, middle) if is_enough else (middle + 1, high)
        if low < least:  # more candidates for no less effort are no gain
            least = low
            yield replace(plan, effort=efforts[low], refine=refine), True
    if least == len(efforts):
        yield replace(plan, effort=efforts[-1], refine=REFINE[-1] if plan.reranks else 1), False


def _is_enough(segment: Segment, tune: Questions, recall: float) -> bool:
    """Return whether a setting reaches the recall; far from it, few queries say so."""
    return not _is_far(segment, tune, recall) and _reaches(tune.recall(segment), recall)


def _is_far(segment: Segment, tune: Questions, recall: float) -> bool:
    """Return whether few queries show already that a setting does not reach the recall."""
    shares = tune.first(FIRST).recall(segment)
    chance = CONFIDENCE * shares.std() / np.sqrt(len(shares))
    return bool(shares.mean() + 2 * chance < recall)


def _reaches(shares: Float[np.ndarray, "queries"], recall: float) -> bool:
    """Return whether the mean is above the target by more than chance.

    Near 1, where chance may be more than there is room for, half of the room must do.
    """
    chance = CONFIDENCE * shares.std() / np.sqrt(len(shares))
    return bool(shares.mean() >= recall + min(chance, (1 - recall) / 2))


def _efforts(plan: Plan) -> Sequence[int]:
    if plan.kind == "Flat":
        return [0]
    if plan.kind.startswith("IVF"):
        lists = lists_of(plan.kind)
        return [1, *(effort for effort in EFFORTS if effort < lists), lists]
    return [effort for effort in EFFORTS if effort >= K]


def milliseconds(segment: Segment, queries: Float[np.ndarray, "queries dim"]) -> float:
    """Return the time of a query alone, on one thread: the better of two rounds."""
    rounds = []
    with one_thread():
        for _ in range(2):
            began = time.perf_counter()
            for query in queries:
                segment.search(query[None], K)
            rounds.append(time.perf_counter() - began)
    return 1000 * min(rounds) / len(queries)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let faiss use one thread: figures then say the same on every machine of a kind."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
