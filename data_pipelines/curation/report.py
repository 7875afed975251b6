"""What a curation did: ``report.json``, and the funnel on the console."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.curation.decide import Decision
from data_pipelines.curation.rules import Rule
from data_pipelines.curation.scores import Mask, ScoredSet
from data_pipelines.faults import Faults
from vlp.console import say, show, show_table
from vlp.output import write_json

REPORT = "report.json"


class Curation(NamedTuple):
    """A curation whose decision is made."""

    raw: str
    clean: Path
    rules: Sequence[Rule]
    scored: ScoredSet
    samples: Mapping[str, list[Mask] | None]
    """By column, the sample of the set that a dear filter was asked about; see cascade.py."""
    decision: Decision
    faults: Faults
    """What was found wrong while headers were read."""


def write_report(curation: Curation, folder: Path) -> dict[str, Any]:
    """Write ``report.json`` and return what is in it."""
    scored, decision = curation.scored, curation.decision
    report = {
        "raw": curation.raw,
        "out": str(curation.clean),
        "samples_in": sum(map(len, scored.keys)),
        "failed": decision.failed.as_dict(),
        "rules": [step._asdict() for step in decision.steps],
        "faults": curation.faults.as_dict(),
        "scores_reused": scored.num_reused,
        "samples_out": decision.num_kept,
        "shards_out": len(list(folder.glob("*.tar"))),
    }
    write_json(folder / REPORT, report)
    return report


def show_funnel(report: Mapping[str, Any]) -> None:
    """Print what came in, what each rule dropped, what is left."""
    rows: list[Sequence[Any]] = [("samples in", "", "", "", report["samples_in"])]
    for step in report["rules"]:
        alone = "" if step["alone"] is None else step["alone"]
        alone = f"~{alone}" if step["is_estimate"] and alone != "" else alone
        rows.append((step["rule"], alone, step["failed"] or "", step["dropped"], step["left"]))
    show_table(("rule", "drops alone", "failed", "dropped", "left"), rows)
    share = report["samples_out"] / report["samples_in"]
    many = report["shards_out"]
    what = f"number of shards: {many}" if many else "listed in keep.parquet"
    show(
        f"Kept {report['samples_out']} of {report['samples_in']} samples ({share:.1%}) in "
        f"{report['out']}, {what}."
    )
    for title in ("failed", "faults"):
        found = [f"{fault['count']} {reason}" for reason, fault in report[title].items()]
        if found:
            label = "Could not be scored" if title == "failed" else "Not among the samples"
            show(f"{label}: {', '.join(found)}.")
    if report["scores_reused"]:
        say(f"The scores of {report['scores_reused']} shards were still valid.")
