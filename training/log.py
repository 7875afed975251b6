"""What a run writes down while it runs: ``metrics.jsonl``, TensorBoard, a line for the person."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from training.state import TrainState
from vlp.console import say
from vlp.output import write_bytes

METRICS = "metrics.jsonl"
TIME_FIELDS = ("samples_per_second", "data_wait_share", "data/")
"""How the names of figures begin that the clock decides: two equal runs have others."""
SECONDS_BETWEEN_LINES = 15
"""Where no progress bar moves, a line is printed this often."""


class RunLog:
    """Rows of figures by step. Rows after the step that a run goes on from are dropped first."""

    def __init__(self, run: Path, step: int, *, is_main: bool) -> None:
        self._file = self._board = None
        self.figures: dict[str, Any] = {}
        """The newest value of every figure, of a run before that this one goes on from, too."""
        if is_main:
            from torch.utils.tensorboard import SummaryWriter

            kept = _rows_until(run / METRICS, step)
            for line in kept:
                self.figures |= json.loads(line)
            write_bytes(run / METRICS, "".join(kept).encode())
            self._file = (run / METRICS).open("a")
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        self._samples, self._waited, self._since = 0, 0.0, time.perf_counter()
        self._printed = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def count(self, samples: int) -> None:
        """Count samples that have gone through a step."""
        self._samples += samples

    def speed(self) -> dict[str, float]:
        """Return samples per second and the share of the time spent waiting, since last asked."""
        seconds = max(1e-9, time.perf_counter() - self._since)
        figures = {
            "samples_per_second": self._samples / seconds,
            "data_wait_share": self._waited / seconds,
        }
        self._samples, self._waited, self._since = 0, 0.0, time.perf_counter()
        return figures

    def row(self, state: TrainState, figures: Mapping[str, Any]) -> dict[str, float]:
        """Write one row and return it as plain numbers."""
        row = {name: _number(value) for name, value in figures.items()}
        self.figures |= row
        if self._file and self._board:
            where = {"step": state.step, "samples_seen": state.samples_seen}
            self._file.write(json.dumps(where | row) + "\n")
            self._file.flush()
            for name, value in row.items():
                self._board.add_scalar(name, value, state.step)
        return row

    def line(self, step: int, steps: int, row: Mapping[str, float]) -> None:
        """Print how far the run is, where no progress bar shows it and not too often."""
        now = time.perf_counter()
        if sys.stderr.isatty() or (now - self._printed < SECONDS_BETWEEN_LINES and step < steps):
            return
        self._printed = now
        say(f"step {step}/{steps}  {note(row)}")

    def flush(self) -> None:
        """Wait until the rows are on the disk: a checkpoint must not be newer than they are."""
        if self._file:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write out what is still held back."""
        if self._file and self._board:
            self._file.close()
            self._board.close()


def note(row: Mapping[str, float]) -> str:
    """Return the figures that a person watches, in one short line."""
    return (
        f"loss {row['loss']:.3f}  {row['samples_per_second']:.0f} samples/s  "
        f"data wait {row['data_wait_share']:.0%}"
    )


def _rows_until(path: Path, step: int) -> list[str]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                rows.append(line)
        except ValueError:  # the last line of a run that was killed while it wrote
            continue
    return rows


def _number(value: Any) -> float:
    return value.item() if isinstance(value, torch.Tensor) else float(value)
