"""The page of an index: what was tried, and why it is what it is."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlp.index.choose import Choice, Trial
from vlp.index.plan import K, Plan
from vlp.output import write_json
from vlp.report import beside, page, plot, section, table, tiles, write_page

COLUMNS = (
    "kind",
    "effort",
    "candidates",
    f"recall@{K}",
    "ms a query",
    "queries/s",
    "MB",
    "MB foretold",
    "built in s",
    "",
)


def write_pages(folder: Path, choice: Choice, asked: dict[str, Any]) -> None:
    """Write ``report.json`` and ``report.html``.

    Args:
        folder: Of the index.
        choice: What was chosen, and what was tried.
        asked: The features, the recall and memory that were asked for, and the queries.
    """
    plan, trials = choice.plan, choice.trials
    record = {"asked": asked, "chosen": asdict(plan), "trials": [asdict(one) for one in trials]}
    write_json(folder / "report.json", record)
    body = [tiles({name: value for name, value in asked.items() if value is not None})]
    if not trials:
        told = "The set is small: every vector is compared, and nothing had to be tuned."
        body.append(section("Exact", table(["rows"], [[asked["rows"]]]), note=told))
    note = (
        "Effort is lists looked into (IVF) or nodes in view (HNSW); candidates for each hit are "
        "ranked again by their full vectors, which stay on the disk. A setting is the least effort "
        "that reached the recall on the queries it was tuned with; recall and time are of other "
        "queries, one at a time, on one thread."
    )
    rows = [_row(one, plan) for one in sorted(trials, key=lambda one: one.milliseconds)]
    body.append(section("Tried", beside(_plot(trials)), table(COLUMNS, rows), note=note))
    write_page(folder / "report.html", page("Index", *body, subtitle=str(asked["features"])))


def _row(one: Trial, chosen: Plan) -> tuple:
    verdict = "chosen" if one.plan == chosen else "" if one.is_enough else "not enough"
    return (
        one.plan.kind,
        one.plan.effort,
        one.plan.refine,
        one.recall,
        one.milliseconds,
        round(1000 / one.milliseconds),
        one.bytes / 1e6,
        one.predicted_bytes / 1e6,
        round(one.build_seconds, 1),
        verdict,
    )


def _plot(trials: Sequence[Trial]) -> Any:
    series: dict[str, list[tuple[float, float]]] = {}
    for one in sorted(trials, key=lambda one: one.milliseconds):
        series.setdefault(one.plan.kind, []).append((one.milliseconds, one.recall))
    return plot(f"recall@{K}", series, x="milliseconds a query")
