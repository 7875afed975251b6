"""Counts as drawings: histograms, bars, and tables whose cells are shaded."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from vlp.axes import Frame, round_axis, tight_axis
from vlp.report import drawing_of, number


def histogram(
    title: str,
    edges: Sequence[float],
    counts: Mapping[str, Sequence[int]],
    *,
    x: str,
    marks: Sequence[float] = (),
    is_log: bool = False,
) -> Markup:
    """Return how often numbers lie between edges, as bars; nothing where there is no number.

    Args:
        title: What is counted.
        edges: Ascending; one more than there are bars.
        counts: By name, of each bar; they stand on top of each other.
        x: What the axis is, with its unit.
        marks: Numbers to draw a line at, such as thresholds, inside the edges.
        is_log: Whether equal ratios are equally far apart.
    """
    tops = np.cumsum([*counts.values()], axis=0)
    if not tops.size or not tops[-1].any():
        return Markup()
    across = tight_axis(edges[0], edges[-1], is_log=is_log)
    frame = Frame(across, round_axis(0, float(tops[-1].max())))
    drawing = [frame.grid()]
    for place, top in enumerate(tops):
        below = tops[place - 1] if place else np.zeros_like(top)
        drawing += [
            _bar(frame, edges[n : n + 2], (int(below[n]), int(top[n])), place)
            for n in np.flatnonzero(top > below).tolist()
        ]
    for mark in marks:
        drawing.append(
            Markup('<line class="mark" x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(
                frame.y(frame.up.high), frame.y(0), x=frame.x(mark)
            )
        )
    line = f", lines at {' and '.join(map(number, marks))}" if marks else ""
    told = f"{title} by {x}: {number(int(tops[-1].sum()))}{line}"
    return drawing_of(title, drawing, [*counts] if len(counts) > 1 else [], x=x, told=told)


def bars(title: str, rows: Iterable[tuple[str, float, str]]) -> Markup:
    """Return bars that lie one under the other; nothing without rows.

    Args:
        title: What the bars are.
        rows: Of each its name, its length in [0, 1], and what is said at its end.
    """
    lines = [
        Markup('<span>{}</span><i><b style="width:{:.1f}%"></b></i><span>{}</span>').format(
            name, 100 * share, told
        )
        for name, share, told in rows
    ]
    if not lines:
        return Markup()
    return Markup('<figure class="bars"><figcaption>{}</figcaption><div>{}</div></figure>').format(
        title, Markup("\n").join(lines)
    )


def matrix(
    corner: str,
    names: Sequence[str],
    rows: Iterable[Sequence[int | None]],
    *,
    estimates: Collection[int] = (),
) -> Markup:
    """Return a table with a numbered column for each row, cells shaded by their share of the row.

    Args:
        corner: What the rows are.
        names: Of the rows.
        rows: Counts; None is not known. A row is compared with its count on the diagonal.
        estimates: Rows whose counts are estimates: these have a ``~``.
    """
    lines, rough = [], set(estimates)
    for place, row in enumerate(rows):
        whole = row[place] or 0
        cells = [
            Markup('<td class="number" style="--share:{:.2f}">{}</td>').format(
                count / whole if count and whole else 0,
                "" if count is None else f"{'~' * bool({place, other} & rough)}{number(count)}",
            )
            for other, count in enumerate(row)
        ]
        lines.append(
            Markup("<tr><td>{} {}</td>{}</tr>\n").format(
                place + 1, names[place], Markup().join(cells)
            )
        )
    heads = Markup().join(
        Markup('<th class="number">{}</th>').format(n + 1) for n in range(len(names))
    )
    return Markup(
        '<div class="wide"><table class="matrix"><thead><tr><th>{}</th>{}</tr></thead>'
        "<tbody>\n{}</tbody></table></div>"
    ).format(corner, heads, Markup().join(lines))


def _bar(frame: Frame, edges: Sequence[float], heights: tuple[int, int], colour: int) -> Markup:
    left, right = (frame.x(edge) for edge in edges)
    low, high = (frame.y(height) for height in heights)
    return Markup('<rect class="c{}" x="{:g}" y="{:g}" width="{:.4g}" height="{:.4g}"/>').format(
        colour, left, high, max(0.5, right - left - 0.4), low - high
    )
