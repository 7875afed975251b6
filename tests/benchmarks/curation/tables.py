"""What the parts of the benchmark of filters hand back, and how they run filters."""

import io
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from data_pipelines.curation.cascade import score_in_rounds
from data_pipelines.curation.decide import decide
from data_pipelines.curation.rules import read_rules
from data_pipelines.curation.scores import ScoredSet, open_scores
from data_pipelines.engine import Engine
from data_pipelines.filter import filter_shards
from data_pipelines.sources import find_shards
from vlp.cli import run
from vlp.console import show_table, speaking

TIMEOUT_SECONDS = 1500


class Table(NamedTuple):
    """A table that is printed when all is measured."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[Any]]


def show(table: Table) -> None:
    print(f"\n{table.title}")
    show_table(table.columns, table.rows)


def note(text: str) -> None:
    """Print what is done now, to standard error."""
    print(text, file=sys.stderr, flush=True)


def curated(raw: Path, clean: Path, rules: Sequence[str], **options: Any) -> dict[str, Any]:
    """Run filters in this process, and return their report; nothing is printed."""
    with speaking("json"):
        engine = Engine(kind="inline")
        return filter_shards(str(raw), clean, keep=rules, engine=engine, overwrite=True, **options)


class Fates(NamedTuple):
    """What rules make of a set, by key."""

    first: dict[str, int]
    """Number of the first rule that drops a sample or fails on it; -1 for one that is kept."""
    scored: ScoredSet

    def values(self, column: str) -> dict[str, Any]:
        """Return what a filter said of each sample; None where it failed or was not asked."""
        found = {}
        for shard, keys in enumerate(self.scored.keys):
            values = pq.read_table(self.scored.path(shard), columns=[column])[column]
            found |= dict(zip(keys, values.to_pylist(), strict=True))
        return found


def fates(raw: Path, scores: Path, texts: Sequence[str]) -> Fates:
    """Score and decide in this process, as `vlp filter` does, and write no more than scores."""
    rules, scored = read_rules(texts), open_scores(find_shards(str(raw)), scores)
    with speaking("json"):
        samples = score_in_rounds(Engine(kind="inline"), rules, scored, seed=0)
        decision = decide(rules, scored, samples)
    first = {
        key: int(number)
        for keys, numbers in zip(scored.keys, decision.first, strict=True)
        for key, number in zip(keys, numbers, strict=True)
    }
    return Fates(first, scored)


def vlp(*words: str | Path) -> Any:
    """Run a command in this process, and return its result; nothing is printed."""
    with redirect_stdout(io.StringIO()):
        return run([*map(str, words), "--quiet"])


@contextmanager
def cpu_seconds() -> Iterator[list[float]]:
    """Yield a list that gets the seconds of CPU that the block took, all threads together."""
    took, start = [], time.process_time()
    yield took
    took.append(time.process_time() - start)


def peak_mib() -> float:
    """Return the most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
