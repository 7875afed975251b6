"""What every HTML report is made of: a page, tables, plots, galleries, in one file without network.

Parts are functions that return ``Markup``: HTML whose texts are escaped. Any other text that goes
into a part is data, such as a caption or a name, and is escaped there.
"""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from PIL import Image

from vlp.axes import HEIGHT, RIGHT, WIDTH, Frame, round_axis
from vlp.console import one_line
from vlp.output import write_bytes

NUM_COLOURS = 6
POINTS = 180
"""A longer series is drawn as the means of so many parts, over the band from least to most."""
STYLE = (Path(__file__).parent / "report.css").read_text()


class Point(NamedTuple):
    """A point of a series, or what many of them come to."""

    x: float
    mean: float
    least: float
    most: float


def page(title: str, *parts: Markup, subtitle: str = "") -> Markup:
    """Return a whole HTML document."""
    return Markup(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        "<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<header><h1>{title}</h1>"
        "<p>{subtitle}</p></header>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    ).format(title=title, subtitle=subtitle, style=Markup(STYLE), body=Markup("\n").join(parts))


def write_page(path: Path, document: Markup) -> None:
    """Write a document: a reader sees the old one or the new one, whole."""
    write_bytes(path, document.encode(errors="replace"))


def section(title: str, *parts: Markup, note: str = "", id: str = "") -> Markup:  # noqa: A002
    """Return parts under a heading; nothing where there is no part to show.

    Args:
        title: The heading.
        parts: What stands under it.
        note: A sentence between them.
        id: What the section is found by, as ``#id``.
    """
    shown = [part for part in parts if part]
    if not shown:
        return Markup()
    head = Markup("<h2>{}</h2>").format(title)
    about = Markup('<p class="note">{}</p>').format(note) if note else Markup()
    start = Markup('<section id="{}">').format(id) if id else Markup("<section>")
    return start + head + about + Markup("\n").join(shown) + Markup("</section>")


def folded(title: str, *parts: Markup) -> Markup:
    """Return parts that are seen when the title is clicked."""
    body = Markup("\n").join(parts)
    return Markup("<details><summary>{}</summary>{}</details>").format(title, body)


def tiles(figures: Mapping[str, object]) -> Markup:
    """Return a few figures that are seen first, large, each over its name."""
    cells = [
        Markup("<div><b>{}</b><span>{}</span></div>").format(number(value), name)
        for name, value in figures.items()
    ]
    return Markup('<div class="tiles">{}</div>').format(Markup().join(cells))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """Return a table, numbers aligned to the right; nothing without rows."""
    rows = list(rows)
    if not rows:
        return Markup()
    is_number = [all(_is_number(row[place]) for row in rows) for place in range(len(columns))]

    def line(tag: str, cells: Sequence[object]) -> Markup:
        done = [
            Markup("<{0}{1}>{2}</{0}>").format(
                Markup(tag), Markup(' class="number"') if right else Markup(), number(cell)
            )
            for cell, right in zip(cells, is_number, strict=True)
        ]
        return Markup("<tr>{}</tr>\n").format(Markup().join(done))

    body = Markup().join(line("td", row) for row in rows)
    return Markup(
        '<div class="wide"><table><thead>{}</thead><tbody>\n{}</tbody></table></div>'
    ).format(line("th", columns), body)


def fault_table(what: str, faults: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Return a row for each reason, most common first; ``faults`` as a fault ledger gives them."""
    rows = [
        (reason, found["count"], one_line("; ".join(found["examples"]), 200))
        for reason, found in sorted(faults.items(), key=lambda item: -item[1]["count"])
    ]
    return table((what, "samples", "such as"), rows)


def beside(*parts: Markup) -> Markup:
    """Return plots or tables side by side, as many as there is room for."""
    shown = Markup().join(part for part in parts if part)
    return Markup('<div class="beside">{}</div>').format(shown) if shown else Markup()


def plot(title: str, series: Mapping[str, Sequence[tuple[float, float]]], *, x: str) -> Markup:
    """Return a line plot of points (x, y); nothing where there is no finite point.

    Values that are not finite are left out. A long series is drawn as means over a band from its
    least to its most, so that no spike is lost.

    Args:
        title: What is drawn, with its unit.
        series: Points by name, in the order of x.
        x: What the axis is.
    """
    lines = {name: _points(points) for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if points}
    every = [point for points in lines.values() for point in points]
    if not every:
        return Markup()
    frame = Frame(
        round_axis(min(p.x for p in every), max(p.x for p in every)),
        round_axis(min(p.least for p in every), max(p.most for p in every)),
    )
    drawing = [frame.grid()]
    for place, points in enumerate(lines.values()):
        drawing.append(_line(points, frame, place % NUM_COLOURS))
    last = ", ".join(f"{name} {number(points[-1].mean)}" for name, points in lines.items())
    names = list(lines) if len(lines) > 1 or title not in lines else []
    return drawing_of(title, drawing, names, x=x, told=f"{title} by {x}; at the end: {last}")


def gallery(pictures: Iterable[tuple[Image.Image | str, str]], *, side: int = 160) -> Markup:
    """Return pictures with captions, inside the document, each at most ``side`` pixels.

    Where a picture cannot be shown, a text in its place says why.
    """
    cells = [
        Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(
            Markup('<p class="missing">{}</p>').format(one_line(picture, 200))
            if isinstance(picture, str)
            else _thumbnail(picture, caption, side),
            one_line(caption, 200),
        )
        for picture, caption in pictures
    ]
    return Markup('<div class="gallery">{}</div>').format(Markup().join(cells))


def number(value: object) -> str:
    """Return a value as it is read best: 1,234,567 and 0.1235; anything else as its text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value if isinstance(value, str) else str(value)  # Markup stays what it is
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def drawing_of(
    title: str, drawing: Iterable[Markup], names: Sequence[str], *, x: str, told: str
) -> Markup:
    """Return a drawing under its title, with names for its colours.

    Args:
        title: What is drawn.
        drawing: Parts of an SVG, inside a ``Frame``.
        names: Of the colours, in their order; none if there is nothing to tell apart.
        x: What the axis across is.
        told: What it shows, for who cannot see it.
    """
    return Markup(
        '<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {width} {height}" role="img" '
        'aria-label="{told}">{drawing}'
        '<text class="axis" x="{right}" y="{low}" text-anchor="end">{x}</text></svg>'
        "{legend}</figure>"
    ).format(
        title=title,
        width=WIDTH,
        height=HEIGHT + 12,
        x=x,
        told=told,
        drawing=Markup().join(drawing),
        right=WIDTH - RIGHT,
        low=HEIGHT + 9,
        legend=_legend(names) if names else Markup(),
    )


def _thumbnail(picture: Image.Image, caption: str, side: int) -> Markup:
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img src="data:image/jpeg;base64,{}" width="{}" height="{}" alt="{}">').format(
        data, *small.size, caption
    )


def _points(points: Sequence[tuple[float, float]]) -> list[Point]:
    finite = [(x, y) for x, y in points if math.isfinite(x) and abs(y) < math.inf]
    size = math.ceil(len(finite) / POINTS) or 1
    parts = (finite[start : start + size] for start in range(0, len(finite), size))
    return [
        Point(
            part[-1][0],
            math.fsum(y for _, y in part) / len(part),
            min(y for _, y in part),
            max(y for _, y in part),
        )
        for part in parts
    ]


def _line(points: Sequence[Point], frame: Frame, colour: int) -> Markup:
    if len(points) == 1:
        return Markup('<circle class="c{}" r="3.5" cx="{}" cy="{}"/>').format(
            colour, frame.x(points[0].x), frame.y(points[0].mean)
        )
    place = [(frame.x(p.x), frame.y(p.mean)) for p in points]
    most = [(frame.x(p.x), frame.y(p.most)) for p in points]
    least = [(frame.x(p.x), frame.y(p.least)) for p in reversed(points)]
    drawn = Markup()
    if most != place:
        drawn += Markup('<polygon class="c{}" points="{}"/>').format(colour, _pairs(most + least))
    return drawn + Markup('<polyline class="c{}" points="{}"/>').format(colour, _pairs(place))


def _pairs(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def _legend(names: Sequence[str]) -> Markup:
    cells = [
        Markup(
            '<span><svg viewBox="0 0 24 8" aria-hidden="true"><polyline class="c{}" '
            'points="0,4 24,4"/></svg>{}</span>'
        ).format(place % NUM_COLOURS, name)
        for place, name in enumerate(names)
    ]
    return Markup('<p class="legend">{}</p>').format(Markup().join(cells))


def _is_number(cell: object) -> bool:
    is_figure = isinstance(cell, int | float) and not isinstance(cell, bool)
    return is_figure or cell in ("", None)
