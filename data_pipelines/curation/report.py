"""What a curation did: ``report.json``, ``report.html``, the data card, and the funnel to read."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.curation.cascade import SAMPLED
from data_pipelines.curation.data_card import write_data_card
from data_pipelines.curation.decide import Decision
from data_pipelines.curation.decisions import write_decisions
from data_pipelines.curation.examples import (
    Example,
    kept_by_length,
    kept_by_text,
    open_examples,
)
from data_pipelines.curation.report_page import report_page
from data_pipelines.curation.rules import Rule, parts_of
from data_pipelines.curation.scores import ScoredSet
from data_pipelines.curation.sheet import Mask
from data_pipelines.curation.survey import Survey, survey
from data_pipelines.faults import Faults
from data_pipelines.keep_list import FILE
from vlp.console import say, show, show_table
from vlp.environment import versions
from vlp.manifest import MANIFEST
from vlp.output import write_json
from vlp.report import write_page

REPORT, PAGE = "report.json", "report.html"


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
    seed: int
    """Draws what is shown."""


def write_report(curation: Curation, folder: Path) -> dict[str, Any]:
    """Write what was decided, and about it; return what is in ``report.json``.

    But for ``timing``, all of it follows from the data, the rules and the seed.
    """
    rules, scored, decision = curation.rules, curation.scored, curation.decision
    write_decisions(rules, scored, decision, folder)
    seen = survey(rules, scored, decision, seed=curation.seed)
    examples = open_examples(scored, seen)
    report = {
        "raw": curation.raw,
        "out": str(curation.clean),
        "seed": curation.seed,
        "samples_in": scored.num_samples,
        "samples_out": decision.num_kept,
        "shards_in": len(scored.sources),
        "shards_out": len(list(folder.glob("*.tar"))),
        "rules": [step._asdict() for step in decision.steps],
        "sampled": _num_sampled(curation),
        "overlap": _overlap(seen.overlap, curation),
        "histograms": {name: found.as_dict() for name, found in seen.histograms.items()},
        "retention": _retention(curation, seen),
        "examples": [_examples(gallery.lists(), examples) for gallery in seen.galleries],
        "failed": decision.failed.as_dict(),
        "faults": curation.faults.as_dict(),
        "versions": versions(),
        "hashes": _hashes(curation, folder),
        "timing": {"scores_reused": scored.num_reused, "scorers": _speeds(scored)},
    }
    write_json(folder / REPORT, report)
    write_page(folder / PAGE, report_page(report, seen.galleries, examples))
    write_data_card(report, folder)
    return report


def _num_sampled(curation: Curation) -> int:
    """Return how many samples dear filters were asked about whatever other rules say."""
    sample = next((own for own in curation.samples.values() if own is not None), [])
    return sum(int(own.sum()) for own in sample)


def _overlap(counts: list[list[int]], curation: Curation) -> list[list[int | None]]:
    """Return how many samples two rules would both drop; of dear rules, an estimate.

    Of a rule that only a seeded sample of the set can tell about, the samples that it alone would
    drop are marked inside that sample.
    """
    steps = curation.decision.steps
    drawn, total = _num_sampled(curation), curation.scored.num_samples

    def told(one: int, other: int) -> int | None:
        if steps[one].alone is None or steps[other].alone is None:
            return None
        is_estimate = steps[one].is_estimate or steps[other].is_estimate
        return round(counts[one][other] / drawn * total) if is_estimate else counts[one][other]

    return [[told(one, other) for other in range(len(steps))] for one in range(len(steps))]


def _retention(curation: Curation, seen: Survey) -> dict[str, Any]:
    """Return what share is kept of groups of samples: by caption length, and by texts of scores."""
    lengths = kept_by_length(curation.scored, curation.decision, seen.drawn)
    found = {"words of the caption": {"drawn": len(seen.drawn), "groups": lengths}}
    for name, groups in seen.groups.items():
        found[name] = {"drawn": None, "groups": kept_by_text(groups)}
    return found


def _examples(
    lists: Mapping[str, Sequence[Any]], examples: Mapping[int, Example]
) -> dict[str, list[dict[str, Any]]]:
    return {
        kind: [
            {
                "shard": examples[pick.place].shard,
                "key": examples[pick.place].key,
                "value": pick.value if isinstance(pick.value, str | int | float) else None,
            }
            for pick in picks
        ]
        for kind, picks in lists.items()
    }


def _hashes(curation: Curation, folder: Path) -> dict[str, str]:
    """Return what says whether another curation had the same models and came to the same."""
    filters = parts_of(curation.rules)
    models = {name: told for name, part in filters.items() if (told := part.identity())}
    listed = next(path for name in (MANIFEST, FILE) if (path := folder / name).exists())
    return {listed.name: hashlib.sha256(listed.read_bytes()).hexdigest(), **models}


def _speeds(scored: ScoredSet) -> dict[str, dict[str, float]]:
    """Return of each filter how many samples it scored now, and in how many seconds of a worker."""
    return {
        name: {
            "samples": count,
            "seconds": round(scored.seconds[name], 3),
            "samples_per_second": round(count / max(scored.seconds[name], 1e-9), 1),
        }
        for name, count in scored.counts.items()
    }


def show_funnel(report: Mapping[str, Any]) -> None:
    """Print what came in, what each rule dropped, what is left."""
    rows: list[Sequence[Any]] = [("samples in", "", "", "", report["samples_in"])]
    for step in report["rules"]:
        alone = "" if step["alone"] is None else step["alone"]
        alone = f"~{alone}" if step["is_estimate"] and alone != "" else alone
        rows.append((step["rule"], alone, step["failed"] or "", step["dropped"], step["left"]))
    show_table(("rule", "drops alone", "failed", "dropped", "left"), rows)
    if any(step["is_estimate"] for step in report["rules"]):
        say(f"~ is an estimate by {SAMPLED:.0%} of the samples, drawn by the seed.")
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
    if report["timing"]["scores_reused"]:
        say(f"The scores of {report['timing']['scores_reused']} shards were still valid.")
    say(f"What was dropped, and what nearly was, is in {Path(report['out']) / PAGE}.")
