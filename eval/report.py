"""The report of an evaluation: one page without network, and a table for a paper."""

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

from markupsafe import Markup

from data_pipelines.encoded import EncodedSet
from data_pipelines.faults import SampleFault
from eval.result import Bars, Curve, Histogram, Matrix, Part, Pictures, Result, Scatter, Table
from vlp.charts import bars
from vlp.image import ImageError, decode
from vlp.maps import heat_map, scatter, spread
from vlp.report import beside, folded, gallery, number, page, plot, section, table, tiles

MAIN = ("acc@1", "mean_recall@1", "mean_average_precision", "accuracy", "best_acc@1")
"""Figures that are seen first."""
SHOWN_BARS = 40
"""Of more classes, the best and the worst are shown."""
NOTE = (
    "Intervals hold 95 % of {draws} draws of the images, each with all its captions. They cover "
    "the choice of the images, not of the training run."
)


def report(
    encoded: EncodedSet, results: Mapping[str, Result], summary: Mapping[str, Any]
) -> Markup:
    """Return the page of an evaluation: figures, what each evaluator draws, and how it was made."""
    figures = summary["metrics"]
    first = {name: value for name, value in figures.items() if name.rpartition("/")[2] in MAIN}
    parts = [section(name, _drawn(result, encoded), id=name) for name, result in results.items()]
    return page(
        f"Evaluation of {summary['model']}",
        section("Main figures", tiles(first), id="main"),
        section(
            "All figures",
            table(("figure", "value", "from", "to"), _rows(summary)),
            note=NOTE.format(draws=summary["draws"]),
            id="figures",
        ),
        *parts,
        section("How it was made", *_made(summary), id="made"),
        subtitle=f"{summary['samples']} samples of {summary['dataset']}, {summary['evaluated']}",
    )


def markdown_table(summary: Mapping[str, Any]) -> str:
    """Return the figures with their intervals as a table in Markdown, for a paper or a README."""
    lines = [
        f"`{summary['model']}` on `{summary['dataset']}`, {summary['samples']} images",
        "",
        "| figure | value | 95 % interval |",
        "|---|---:|---:|",
    ]
    for name, value, low, high in _rows(summary):
        between = "" if low == "" else f"{number(low)} to {number(high)}"
        lines.append(f"| {name} | {number(value)} | {between} |")
    return "\n".join(lines) + "\n"


def _rows(summary: Mapping[str, Any]) -> list[tuple[object, ...]]:
    return [
        (name, value, *summary["intervals"].get(name, ("", "")))
        for name, value in summary["metrics"].items()
    ]


def _drawn(result: Result, encoded: EncodedSet) -> Markup:
    """Return the parts of a result, each under its name; small ones beside each other."""
    small, large = [], []
    for part in result.parts:
        wide = isinstance(part, Pictures | Table)
        shown = draw(part, encoded)
        if shown:
            named = Markup('<div class="part" id="{}">{}</div>').format(part.name, shown)
            (large if wide else small).append(named)
    return Markup("\n").join([beside(*small), *large])


@singledispatch
def draw(part: Part, encoded: EncodedSet) -> Markup:
    """Return a part of a result as a part of the page."""
    raise AssertionError(part)


@draw.register
def _(part: Curve, encoded: EncodedSet) -> Markup:
    return plot(part.title, part.series, x=part.x)


@draw.register
def _(part: Bars, encoded: EncodedSet) -> Markup:
    order = sorted(part.values.items(), key=lambda item: -item[1])
    if len(order) > SHOWN_BARS:
        between = (f"({len(order) - SHOWN_BARS} between)", 0.0)
        order = [*order[: SHOWN_BARS // 2], between, *order[-SHOWN_BARS // 2 :]]
    most = max([abs(value) for _, value in order], default=0) or 1
    return bars(part.title, [(name, max(0, value) / most, number(value)) for name, value in order])


@draw.register
def _(part: Histogram, encoded: EncodedSet) -> Markup:
    return spread(part.title, part.series, x=part.x)


@draw.register
def _(part: Matrix, encoded: EncodedSet) -> Markup:
    return heat_map(part.title, part.values, part.rows, part.columns)


@draw.register
def _(part: Scatter, encoded: EncodedSet) -> Markup:
    return scatter(part.title, part.series)


@draw.register
def _(part: Table, encoded: EncodedSet) -> Markup:
    head = Markup('<p class="title">{}</p>').format(part.title)
    return head + table(part.columns, part.rows) if part.rows else Markup()


@draw.register
def _(part: Pictures, encoded: EncodedSet) -> Markup:
    shown = []
    for row, caption in zip(part.rows, part.captions, strict=True):
        try:
            picture = decode(encoded.dataset.read(encoded.rows[row]).image)
        except (SampleFault, ImageError):  # the dataset is not where it was encoded any more
            continue
        shown.append((picture, caption))
    head = Markup('<p class="title">{}</p>').format(part.title)
    return head + gallery(shown) if shown else Markup()


def _made(summary: Mapping[str, Any]) -> list[Markup]:
    """Return what figures may depend on, and what was left out of the data."""
    told = ("model", "model_hash", "dataset", "sample_ids", "tasks", "dtype", "draws", "seed")
    facts = {name: summary[name] for name in told} | summary["versions"] | summary["hardware"]
    faults = [
        (reason, found["count"], ", ".join(found["examples"]))
        for reason, found in summary["faults"].items()
    ]
    return [
        table(("seconds", ""), list(summary["seconds"].items())),
        table(("left out", "samples", "such as"), faults),
        folded("Versions and hashes", table(("", ""), [(k, str(v)) for k, v in facts.items()])),
    ]
