"""The fastest index that finds what exact search finds: tried, tuned and measured."""

import math
import time
from collections.abc import Sequence
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
    num_lists,
    predicted_bytes,
    train,
)
from vlp.index.exact import Matrix, neighbours
from vlp.index.plan import K, Plan, open_quick, save_quick
from vlp.index.segment import Segment
from vlp.index.tune import Questions, milliseconds, settings

QUERIES = 1000
"""At most, to tune with, and as many others to measure with."""
TIMED = 200
"""Queries whose time is taken."""
SLOWER = 1.5
"""Times the fastest so far that a setting may take to be tuned."""


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

    def trials(
        self, plan: Plan, centroids: Float[np.ndarray, "lists width"] | None, limit: float
    ) -> list[Trial]:
        """Return what came of a kind, once for each setting that is worth a look.

        Args:
            plan: The kind.
            centroids: Of the lists of an inverted file.
            limit: Milliseconds of a query beyond which no setting is.
        """
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
        for setting, is_enough in settings(segment, self.tune, self.recall, limit):
            tuned = replace(segment, plan=setting)
            trials.append(
                Trial(
                    plan=setting,
                    is_enough=is_enough,
                    recall=float(self.measure.recall(tuned).mean()),
                    milliseconds=milliseconds(tuned, self.measure.vectors[:TIMED]),
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
        times = [trial.milliseconds for trial in trials if trial.is_enough]
        trials += exam.trials(plan, centroids, SLOWER * min(times, default=math.inf))
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
