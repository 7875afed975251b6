"""The fastest index that finds what exact search finds: tried, tuned and measured."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
from jaxtyping import Float

from vlp.console import say
from vlp.errors import UserError
from vlp.index.candidates import (
    Family,
    candidates,
    fill,
    learn_lists,
    lists_of,
    num_lists,
    predicted_bytes,
    train,
)
from vlp.index.exact import Matrix, neighbours
from vlp.index.plan import K, Plan, open_quick, save_quick
from vlp.index.segment import Segment

QUERIES = 1000
"""At most, to tune with, and as many others to measure with."""
TIE = 1e-5
"""Cosines that differ by less are equal: last bits depend on how rows are walked."""
TIMED = 200
EFFORTS = sorted({2**power * part // 2 for power in range(1, 13) for part in (2, 3)})
"""2, 3, 4, 6, 8, 12, ... 6144"""
REFINE = (1, 2, 4, 8, 16, 32)
FIRST = 100
"""Queries that a setting which is far from the target is left after."""
CONFIDENCE = 1.64
"""Standard errors above the target that the tuning queries must reach, so that others do, too, 19
times of 20."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A setting that was tried, and what came of it on queries that it was not tuned with."""

    plan: Plan
    is_enough: bool
    """Whether it reached the recall on the queries that it was tuned with."""
    recall: float
    """Share of the exact 10 nearest that were found, in [0, 1]."""
    milliseconds: float
    """Of a query alone, on one thread."""
    predicted_bytes: int
    bytes: int
    build_seconds: float


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


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, and from what."""

    plan: Plan
    file: Path | None = None
    """The index; None where each vector is compared."""
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What each kind of index is put through."""

    rows: Float[np.ndarray, "rows dim"]
    tune: Questions
    measure: Questions
    recall: float
    memory: int | None
    scratch: Path
    """Folder for the indexes that are tried."""

    def file(self, plan: Plan) -> Path:
        """Return where an index of a kind lies."""
        return self.scratch / f"{plan.kind}.faiss"

    def trials(self, plan: Plan, centroids: Float[np.ndarray, "lists width"] | None) -> list[Trial]:
        """Return what came of a kind, once for each setting that is worth a look."""
        began = time.perf_counter()
        if not plan.is_exact:
            quick = fill(train(plan, self.rows, centroids), plan, self.rows)
            save_quick(quick, self.file(plan))
            del quick  # what is mapped from the file is what is searched later, too
        seconds = time.perf_counter() - began
        width = plan.prefix or self.rows[:1].shape[1]
        size = len(self.rows) * width * 4 if plan.is_exact else self.file(plan).stat().st_size
        say(f"Made {plan.kind} in {seconds:.0f} s: {size:,} bytes.")
        if self.memory is not None and size > self.memory:
            say(f"{plan.kind} is larger than it was foretold, and left out.")
            return []
        quick = None if plan.is_exact else open_quick(self.file(plan))
        segment = Segment(Path(), self.rows, pa.table({}), plan, quick, None)
        trials = []
        for setting, is_enough in settings(segment, self.tune, self.recall):
            tuned = replace(segment, plan=setting)
            trials.append(
                Trial(
                    plan=setting,
                    is_enough=is_enough,
                    recall=float(self.measure.recall(tuned).mean()),
                    milliseconds=_milliseconds(tuned, self.measure.vectors[:TIMED]),
                    predicted_bytes=predicted_bytes(plan.kind, len(self.rows), width),
                    bytes=size,
                    build_seconds=seconds,
                )
            )
        return trials


def choose(
    rows: Float[np.ndarray, "rows dim"],
    queries: Matrix,
    scratch: Path,
    *,
    recall: float,
    memory: int | None,
    prefix: int | None,
    family: Family | None = None,
    share: float = 1.0,
) -> Choice:
    """Return the fastest index of some rows that reaches a recall within a memory.

    Args:
        rows: Unit-length rows.
        queries: What is like what will be asked: text features, where there are.
        scratch: Folder for the indexes that are tried.
        recall: In (0, 1].
        memory: Bytes that the index may take; None: no limit.
        prefix: Coordinates that it holds, the rest ranks again; None: all.
        family: The only kinds to try; None: all.
        share: Of all rows that these are, and of the memory that they may take.

    Raises:
        UserError: No index does.
    """
    memory = None if memory is None else int(memory * share)
    plans = candidates(len(rows), rows[:1].shape[1], memory, prefix, family)
    if len(plans) == 1 and plans[0].is_exact:
        return Choice(plan=plans[0])
    tune, measure = questions(rows, queries)
    exam = Exam(
        rows=rows, tune=tune, measure=measure, recall=recall, memory=memory, scratch=scratch
    )
    centroids, trials = None, []
    for plan in plans:
        if plan.kind.startswith("IVF") and centroids is None:
            centroids = learn_lists(rows, num_lists(len(rows)), prefix)
        trials += exam.trials(plan, centroids)
    enough = [trial for trial in trials if trial.is_enough]
    if not enough:
        raise UserError(_told(trials, recall, memory))
    chosen = min(enough, key=lambda trial: trial.milliseconds).plan
    file = None if chosen.is_exact else exam.file(chosen)
    return Choice(plan=chosen, file=file, trials=tuple(trials))


def _told(trials: Sequence[Trial], recall: float, memory: int | None) -> str:
    best = max(trials, key=lambda trial: trial.recall, default=None)
    within = "" if memory is None else f" within {memory:,} bytes"
    reached = f"; {best.plan.kind} reaches {best.recall:.3f}" if best else ""
    return (
        f"No index{within} reaches a recall of {recall}{reached}. Give more --memory, a longer "
        f"--prefix or a lower --recall."
    )


def questions(rows: Matrix, queries: Matrix) -> tuple[Questions, Questions]:
    """Return queries to tune with and others to measure with; no query is in both."""
    drawn = np.random.default_rng(0).permutation(len(queries))[: 4 * QUERIES]
    vectors = np.ascontiguousarray(queries[np.sort(drawn)], np.float32)
    vectors = np.unique(vectors[np.isfinite(vectors).all(1)], axis=0)
    faiss.normalize_L2(vectors)
    vectors = vectors[np.random.default_rng(1).permutation(len(vectors))[: 2 * QUERIES]]
    cosines, _ = neighbours(vectors, rows, K)
    half = (len(vectors) + 1) // 2
    tune = Questions(vectors=vectors[:half], cosines=cosines[:half])
    measure = Questions(vectors=vectors[half:], cosines=cosines[half:])
    return tune, measure if len(measure.vectors) else tune


def settings(segment: Segment, tune: Questions, recall: float) -> Iterator[tuple[Plan, bool]]:
    """Yield for each number of candidates the least effort that reaches the recall.

    Where none does, the greatest effort with most candidates, and that it is not enough.
    """
    plan = segment.plan
    if plan.is_exact:
        yield plan, True
        return
    efforts = _efforts(plan)
    least = len(efforts)
    for refine in REFINE if plan.reranks else (1,):
        low, high = 0, least  # the least that is enough lies in [low, high]
        while low < high:
            middle = (low + high) // 2
            tried = replace(segment, plan=replace(plan, effort=efforts[middle], refine=refine))
            is_enough = _is_enough(tried, tune, recall)
            low, high = (low, middle) if is_enough else (middle + 1, high)
        if low < least:  # more candidates for no less effort are no gain
            least = low
            yield replace(plan, effort=efforts[low], refine=refine), True
    if least == len(efforts):
        yield replace(plan, effort=efforts[-1], refine=REFINE[-1] if plan.reranks else 1), False


def _is_enough(segment: Segment, tune: Questions, recall: float) -> bool:
    """Return whether a setting reaches the recall; far from it, few queries say so."""
    shares = tune.first(FIRST).recall(segment)
    if shares.mean() + 2 * CONFIDENCE * shares.std() / np.sqrt(len(shares)) < recall:
        return False
    return _reaches(tune.recall(segment), recall)


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


def _milliseconds(segment: Segment, queries: Float[np.ndarray, "queries dim"]) -> float:
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
