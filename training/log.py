"""What a run writes down while it runs: ``metrics.jsonl``, TensorBoard, a line for the person."""

import json
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
SECONDS_BETWEEN_LINES = 15
"""Where no progress bar moves, a line is printed this often."""


class RunLog:
    """Rows of figures by step. Rows after the step that a run goes on from are dropped first."""

    def __init__(
        self,
        run: Path,
        step: int,
        *,
        is_main: bool,
        num_devices: int = 1,
        peak: float | None = None,
    ) -> None:
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
        self._num_devices, self._peak = num_devices, peak
        self._begin()
        self._printed = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def count(self, samples: int, flops: int = 0) -> None:
        """Count samples that have gone through a step, and the operations of this device."""
        self._samples += samples
        self._flops += flops

    def speed(self) -> dict[str, float]:
        """Return how fast it went since last asked.

        Samples per second and the share of the time spent waiting for data; of one device, samples
        and the towers' 10^12 floating-point operations per second, and their share of the
        hardware's peak in [0, 1] (MFU) where that is known.
        """
        seconds = max(1e-9, time.perf_counter() - self._since)
        figures = {
            "samples_per_second": self._samples / seconds,
            "data_wait_share": self._waited / seconds,
            "speed/samples_per_second_per_device": self._samples / seconds / self._num_devices,
        }
        if self._flops:
            figures["speed/tflops_per_device"] = self._flops / seconds / 1e12
            if self._peak:
                figures["speed/mfu"] = self._flops / seconds / self._peak
        self._begin()
        return figures

    def _begin(self) -> None:
        self._samples, self._flops, self._waited = 0, 0, 0.0
        self._since = time.perf_counter()

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

    def close(self) -> None:
        """Write out what is still held back."""
        if self._file and self._board:
            self._file.close()
            self._board.close()


def note(row: Mapping[str, float]) -> str:
    """Return the figures that a person watches, in one short line."""
    mfu = f"MFU {row['speed/mfu']:.0%}  " if "speed/mfu" in row else ""
    return (
        f"loss {row['loss']:.3f}  {row['samples_per_second']:.0f} samples/s  {mfu}"
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
