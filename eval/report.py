"""The report of an evaluation: one page without network, and a table for a paper."""

from collections.abc import Mapping, Sequence
from functools import singledispatch
from typing import Any, NamedTuple

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
CHANCE = {
    "recall@1": "chance@1",
    "acc@1": "chance",
    "mean_per_class_recall": "chance",
    "mean_average_precision": "chance",
    "accuracy": "chance",
}
"""The figure beside each that says what a guess would get."""
SHOWN_BARS = 24
"""Of more classes, the best and the worst are shown."""
NOTE = (
    "Intervals hold 95 % of {draws} draws of the images, each with all its captions. They cover "
    "the choice of the images, not of the training run."
)


class Row(NamedTuple):
    """A figure as tables show it; "" where there is no interval, or nothing to guess."""

    figure: str
    value: float
    low: float | str
    high: float | str
    chance: float | str

    @property
    def between(self) -> str:
        """The interval in words."""
        return "" if self.low == "" else f"{number(self.low)} to {number(self.high)}"


def rows_of(summary: Mapping[str, Any]) -> list[Row]:
    """Return each figure with its interval and what a guess would get."""
    figures, found = summary["metrics"], []
    for name, value in figures.items():
        folder, _, last = name.rpartition("/")
        if last not in CHANCE.values():
            chance = figures.get(f"{folder}/{CHANCE.get(last)}", "")
            low, high = summary["intervals"].get(name, ("", ""))
            found.append(Row(name, value, low, high, chance))
    return found


def report(
    encoded: EncodedSet, results: Mapping[str, Result], summary: Mapping[str, Any]
) -> Markup:
    """Return the page of an evaluation: figures, what each evaluator draws, and how it was made."""
    rows = rows_of(summary)
    parts = [
        section(
            name,
            _drawn(result, encoded),
            _figures(name, [row for row in rows if row.figure in result.figures]),
            note=summary["tasks_ask"].get(name, ""),
            id=name,
        )
        for name, result in results.items()
    ]
    return page(
        f"Evaluation of {summary['model']}",
        section("Main figures", _main(rows), note=NOTE.format(draws=summary["draws"]), id="main"),
        *parts,
        section("How it was made", *_made(summary), id="made"),
        subtitle=f"{summary['samples']} samples of {summary['dataset']}, {summary['evaluated']}",
    )


def markdown_table(summary: Mapping[str, Any]) -> str:
    """Return the figures with their intervals as a table in Markdown, for a paper or a README."""
    lines = [
        f"`{summary['model']}` on `{summary['dataset']}`, {summary['samples']} images",
        "",
        "| figure | value | 95 % interval | chance |",
        "|---|---:|---:|---:|",
    ]
    for row in rows_of(summary):
        told = f"{number(row.value)} | {row.between} | {number(row.chance)}"
        lines.append(f"| {row.figure} | {told} |")
    return "\n".join(lines) + "\n"


def _main(rows: Sequence[Row]) -> Markup:
    """Return the figures that are seen first, over what they lie between."""
    shown = {}
    for row in rows:
        if row.figure.rpartition("/")[2] in MAIN and row.figure.count("/") == 1:
            told = [row.figure, row.between, f"chance {number(row.chance)}" if row.chance else ""]
            shown[", ".join(filter(None, told))] = row.value
    return tiles(shown)


def _figures(name: str, rows: Sequence[Row]) -> Markup:
    """Return all figures of an evaluator, without its name before them."""
    cells = [(row.figure.removeprefix(f"{name}/"), *row[1:]) for row in rows]
    columns = ("figure", "value", "from", "to", "chance")
    found = folded(f"All {len(rows)} figures", table(columns, cells))
    return Markup('<div id="{}/figures">{}</div>').format(name, found)


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
