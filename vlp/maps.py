"""Many numbers as drawings: a heat map, points in the plane, and how values are spread."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from vlp.report import NUM_COLOURS, number, plot

CELLS = 330
"""Side of a heat map."""
BINS = 60
SHOWN_POINTS = 800


def heat_map(
    title: str,
    values: Float[Tensor, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
) -> Markup:
    """Return a square for each cell, darker for more of its row; its names appear when pointed at.

    Args:
        title: What is drawn.
        values: Counts, such as of a confusion matrix; each row is drawn by its own sum.
        rows: Names of the rows.
        columns: Names of the columns.
    """
    side = CELLS / max(1, *values.shape)
    shares = values / values.sum(1, keepdim=True).clamp(min=1)
    cells = []
    for row, column in (values > 0).nonzero().tolist():
        cells.append(
            Markup(
                '<rect class="c0" x="{}" y="{}" width="{size}" height="{size}" opacity="{}">'
                "<title>{} as {}: {}</title></rect>"
            ).format(
                round(column * side, 2),
                round(row * side, 2),
                round(0.08 + 0.92 * shares[row, column].item(), 3),
                rows[row],
                columns[column],
                number(values[row, column].item()),
                size=round(side, 2),
            )
        )
    frame = Markup('<rect class="frame" width="{0}" height="{0}"/>').format(CELLS)
    return _figure(title, frame + Markup().join(cells), CELLS, CELLS)


def scatter(title: str, series: Mapping[str, Float[Tensor, "_ 2"]]) -> Markup:
    """Return points in the plane, some of each series where there are many."""
    some = {name: of[:: max(1, len(of) // SHOWN_POINTS)] for name, of in series.items()}
    every = torch.cat(list(some.values()))
    if not len(every):
        return Markup()
    low, high = every.amin(0), every.amax(0)
    size = (high - low).clamp(min=1e-12)
    drawn = []
    for place, of in enumerate(some.values()):
        for x, y in ((of - low) / size).tolist():
            drawn.append(
                Markup('<circle class="c{}" r="1.7" opacity="0.55" cx="{}" cy="{}"/>').format(
                    place % NUM_COLOURS, round(8 + x * (CELLS - 16), 1), round(322 - y * 314, 1)
                )
            )
    names = Markup().join(
        Markup(
            '<span><svg viewBox="0 0 24 8" aria-hidden="true"><circle class="c{}" cx="12" cy="4" '
            'r="3.5"/></svg>{}</span>'
        ).format(place % NUM_COLOURS, name)
        for place, name in enumerate(some)
    )
    legend = Markup('<p class="legend">{}</p>').format(names)
    return _figure(title, Markup().join(drawn), CELLS, CELLS, legend)


def spread(title: str, series: Mapping[str, Float[Tensor, "_"]], *, x: str) -> Markup:
    """Return the share of values in each of 60 bins, as a line for each series."""
    series = {name: of.double() for name, of in series.items() if len(of)}
    if not series:
        return Markup()
    low = min(of.min().item() for of in series.values())
    high = max(of.max().item() for of in series.values())
    if low == high:
        low, high = low - 0.5, high + 0.5
    width = (high - low) / BINS
    lines = {}
    for name, of in series.items():
        shares = torch.histc(of, BINS, low, high) / len(of)
        lines[name] = [(low + (b + 0.5) * width, v) for b, v in enumerate(shares.tolist())]
    return plot(f"{title} (share of values)", lines, x=x)


def _figure(
    title: str, drawn: Markup, width: int, height: int, below: Markup | None = None
) -> Markup:
    return Markup(
        '<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {width} {height}" role="img" '
        'aria-label="{title}">{drawn}</svg>{below}</figure>'
    ).format(title=title, width=width, height=height, drawn=drawn, below=below or Markup())
