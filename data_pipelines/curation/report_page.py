"""``report.html`` of a curation, made of what is in ``report.json`` and of the samples it shows."""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from data_pipelines.curation.cascade import SAMPLED
from data_pipelines.curation.examples import Example
from data_pipelines.curation.survey import Gallery, Pick
from vlp.charts import bars, histogram, matrix
from vlp.console import one_line
from vlp.report import beside, fault_table, folded, gallery, number, page, section, table, tiles

Report = Mapping[str, Any]
GROUPS = 20
"""Groups, such as languages, that are drawn: the most common ones."""


def report_page(
    report: Report, galleries: Sequence[Gallery], examples: Mapping[int, Example]
) -> Markup:
    """Return the report as one page without network."""
    share = report["samples_out"] / report["samples_in"]
    failed = sum(found["count"] for found in report["failed"].values())
    return page(
        Path(report["out"]).name,
        tiles(
            {
                "samples in": report["samples_in"],
                "kept": report["samples_out"],
                "share kept": f"{share:.1%}",
                "could not be scored": failed,
            }
        ),
        section("What each rule did", _funnel(report), _rules(report), note=_note(report)),
        section("Rules that drop the same samples", _overlap(report), note=_OVERLAP),
        section("Scores", beside(*_histograms(report)), note=_SCORES),
        section("What share is kept", beside(*_retention(report))),
        section("Samples", *_galleries(report, galleries, examples), note=_SAMPLES),
        section("What could not be scored", fault_table("reason", report["failed"]), note=_FAILED),
        section("What is no sample", fault_table("reason", report["faults"])),
        section("Speed", _speed(report), note=_SPEED),
        section("How to do it again", *_again(report)),
        subtitle=f"{number(report['samples_out'])} of {number(report['samples_in'])} samples of "
        f"{report['raw']} kept by {number(len(report['rules']))} rules.",
    )


_OVERLAP = (
    "How many samples both of two rules would drop, each alone; on the diagonal, one rule. Shaded "
    "by the share of the row's rule: where a row is dark, its rule adds little."
)
_SCORES = (
    "Of the samples that were scored. The broken line is the threshold; the second colour is of "
    "samples that are not kept in the end, whichever rule it was."
)
_SAMPLES = (
    "Drawn by the seed from what earlier rules left; near the threshold are those that another "
    "threshold would decide about first. Under each its score and its caption."
)
_FAILED = "These are neither kept nor dropped by a rule: what they are is not known."
_SPEED = (
    "Of one worker, for what was scored in this run; scores of earlier runs cost nothing. The time "
    "to decode a picture counts for the first filter that looked at it."
)


def _note(report: Report) -> str:
    if not any(step["is_estimate"] for step in report["rules"]):
        return ""
    return (
        f"Estimates are by {number(report['sampled'])} samples, {SAMPLED:.0%} of all, drawn by the "
        "seed: these scores are dear, and of others only what cheaper rules left has them."
    )


def _funnel(report: Report) -> Markup:
    total = report["samples_in"]
    rows = [("all", 1.0, number(total))]
    rows += [
        (step["rule"], step["left"] / total, f"{number(step['left'])} ({step['left'] / total:.1%})")
        for step in report["rules"]
    ]
    return bars("Left after each rule", rows)


def _rules(report: Report) -> Markup:
    return table(
        ("rule", "drops alone", "", "drops of what was left", "could not be scored", "left"),
        [
            (
                step["rule"],
                "" if step["alone"] is None else step["alone"],
                ("not known" if step["alone"] is None else "estimate")
                if step["is_estimate"]
                else "",
                step["dropped"],
                step["failed"],
                step["left"],
            )
            for step in report["rules"]
        ],
    )


def _overlap(report: Report) -> Markup:
    if len(report["rules"]) < 2:
        return Markup()
    steps = report["rules"]
    estimates = [place for place, step in enumerate(steps) if step["is_estimate"]]
    names = [step["rule"] for step in steps]
    return matrix("rule", names, report["overlap"], estimates=estimates)


def _histograms(report: Report) -> Iterable[Markup]:
    for name, found in report["histograms"].items():
        edges = found["edges"]
        outside = f"; {number(found['outside'])} more lie outside" if found["outside"] else ""
        yield histogram(
            name,
            edges,
            {"kept": found["kept"], "not kept": found["dropped"]},
            x=f"score{outside}",
            marks=[mark for mark in _drawn_at(found) if edges[0] <= mark <= edges[-1]],
            is_log=found["is_log"],
        )


def _drawn_at(found: Mapping[str, Any]) -> list[float]:
    """Return where thresholds are drawn: of whole numbers, between one that stays and the next."""
    edges, lows, highs = found["edges"], *found["thresholds"].values()
    is_whole = not found["is_log"] and not (edges[0] + 0.5) % 1 and not (edges[1] + 0.5) % 1
    if not is_whole:
        return [*lows, *highs]
    return [*(math.ceil(low) - 0.5 for low in lows), *(math.floor(high) + 0.5 for high in highs)]


def _retention(report: Report) -> Iterable[Markup]:
    for name, found in report["retention"].items():
        drawn = found["drawn"]
        whole = drawn is None or drawn >= report["samples_in"]
        title = f"By {name}" if whole else f"By {name} ({number(drawn)} samples drawn)"
        groups = found["groups"]
        rows = [
            (
                one_line(one["group"], 40),
                one["kept"] / one["samples"],
                f"{one['kept'] / one['samples']:.0%} of {number(one['samples'])}",
            )
            for one in groups[:GROUPS]
        ]
        yield bars(title, rows)


def _galleries(
    report: Report, galleries: Sequence[Gallery], examples: Mapping[int, Example]
) -> Iterable[Markup]:
    for step, own in zip(report["rules"], galleries, strict=True):
        near = [*own.just_dropped.picks[::-1], *own.just_kept.picks]
        shown = [
            _pictures("Dropped", own.dropped.picks, examples),
            _pictures("Near the threshold", near, examples, {id(p) for p in own.just_kept.picks}),
            _pictures("Kept", own.kept.picks, examples),
        ]
        title = f"{step['rule']}: {number(step['dropped'])} dropped"
        yield folded(title, *(part for part in shown if part))


def _pictures(
    title: str,
    picks: Sequence[Pick],
    examples: Mapping[int, Example],
    kept: set[int] | None = None,
) -> Markup:
    """Return a gallery; ``kept`` are those of both kinds that stay."""
    if not picks:
        return Markup()
    cells = []
    for pick in picks:
        one = examples[pick.place]
        value = pick.value if isinstance(pick.value, str | int | float) else None
        told = [] if value is None else [one_line(number(value), 40)]
        if kept is not None:
            told.insert(0, "kept" if id(pick) in kept else "dropped")
        label = f"{', '.join(told)}: " if told else ""
        cells.append((one.picture, f"{label}{one.caption}"))
    return Markup("<h3>{}</h3>{}").format(title, gallery(cells))


def _speed(report: Report) -> Markup:
    rows = [
        (name, found["samples"], found["seconds"], found["samples_per_second"])
        for name, found in report["timing"]["scorers"].items()
    ]
    return table(("filter", "samples scored now", "seconds", "samples per second"), rows)


def _again(report: Report) -> Iterable[Markup]:
    facts = {"seed": report["seed"]}
    facts |= {f"hash, {name}": told[:16] for name, told in report["hashes"].items()}
    rules = [step["rule"] for step in report["rules"]]
    words = ["vlp", "filter", report["raw"], report["out"], "--seed", str(report["seed"]), "--keep"]
    yield Markup("<pre>{}</pre>").format(shlex.join([*words, *rules]))
    yield beside(
        table(("what it follows from", "value"), facts.items()),
        table(("package", "version"), report["versions"].items()),
    )
