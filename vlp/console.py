"""What a command tells the person who runs it, and how: in full, ``--quiet``, or as ``--json``.

``say`` is for what happens on the way, ``show`` for the result. A command also returns its result
as plain data, which ``--json`` prints instead of both.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

Voice = Literal["full", "quiet", "json"]
_voice: Voice = "full"


@contextmanager
def speaking(voice: Voice | None) -> Iterator[None]:
    """Let every command inside the block speak in this voice; None leaves it as it is."""
    global _voice
    before, _voice = _voice, voice or _voice
    try:
        yield
    finally:
        _voice = before


def say(text: str) -> None:
    """Print a line about the way to the result; ``--quiet`` and ``--json`` leave it out."""
    if _voice == "full":
        print(text, flush=True)


def warn(text: str) -> None:
    """Print a line that must not be missed to standard error, whatever the voice."""
    print(f"vlp: warning: {text}", file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print a result for people; ``--json`` leaves it out."""
    if _voice != "json":
        print(text, flush=True)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table: text to the left, numbers to the right."""
    rows = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if _is_number(cell) else cell.ljust(width)
            for cell, width in zip(cells, widths, strict=True)
        )
        return "  ".join(padded).rstrip()

    show("\n".join([line(columns), "  ".join("-" * w for w in widths), *map(line, rows)]))


def one_line(text: str, length: int = 80) -> str:
    """Return data as it may be shown: on one line, not too long, nothing that moves the cursor."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= length else f"{line[: length - 1]}…"


@contextmanager
def progress(total: int | None, what: str) -> Iterator[Any]:
    """Yield ``advance(steps=1, **fields)`` that moves a bar; nothing moves where nobody looks."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    shown = _voice == "full" and sys.stderr.isatty()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as bar:
        task = bar.add_task(what, total=total, note="")

        def advance(steps: int = 1, note: str | None = None) -> None:
            bar.update(task, advance=steps)
            if note is not None:
                bar.update(task, note=note)

        yield advance


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).replace("-", "", 1).replace("e", "", 1).strip("%+").isdigit()
