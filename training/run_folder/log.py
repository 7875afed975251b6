"""What a run writes down while it runs: ``metrics.jsonl``, trackers, a line for the person."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from eval.report import CHANCE
from training.config import TrainConfig
from training.run_folder.trackers import Trackers
from training.state import TrainState
from vlp.console import say
from vlp.output import read_lines, write_bytes

METRICS = "metrics.jsonl"
TIME_FIELDS = ("samples_per_second", "data_wait_share", "data/", "speed/")
"""How the names of figures begin that the clock decides: two equal runs have others."""
SECONDS_BETWEEN_LINES = 15
"""Where no progress bar moves, a line is printed this often."""


class RunLog:
    """Rows of figures by step. Rows after the step that a run goes on from are dropped first."""

    def __init__(
        self,
        run: Path,
        step: int,
        config: TrainConfig,
        *,
        is_main: bool,
        num_devices: int = 1,
        peak: float | None = None,
    ) -> None:
        self._file = self._trackers = None
        self.figures: dict[str, Any] = {}
        """The newest value of every figure, of a run before that this one goes on from, too."""
        self._run, self._config, self._is_main = run, config, is_main
        self.go_back(step)
        self._num_devices, self._peak = num_devices, peak
        self._begin()
        self._first, self._began, self._printed = step, self._since, self._since

    def go_back(self, step: int) -> None:
        """Drop the rows after a step; what follows is written behind it."""
        if not self._is_main:
            return
        self.close()
        kept = keep_rows(self._run / METRICS, lambda row: row["step"] <= step)
        self.figures = dict(chain.from_iterable(row.items() for row in kept))
        self._file = (self._run / METRICS).open("a")
        self._trackers = Trackers(self._config.trackers, self._run, step, asdict(self._config))

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
        if self._file and self._trackers:
            where = {"step": state.step, "samples_seen": state.samples_seen}
            self._file.write(_line(where | row))
            self._file.flush()
            self._trackers.log(row, state.step)
        return row

    def line(self, step: int, steps: int, row: Mapping[str, float]) -> None:
        """Print how far the run is, where no progress bar shows it and not too often."""
        now = time.perf_counter()
        if sys.stderr.isatty() or (now - self._printed < SECONDS_BETWEEN_LINES and step < steps):
            return
        self._printed = now
        left = (now - self._began) / max(1, step - self._first) * (steps - step)
        ahead = f"  ETA {timedelta(seconds=round(left))}" if step < steps else ""
        say(f"step {step}/{steps}  {note(row)}{ahead}")

    def flush(self) -> None:
        """Wait until the rows are on the disk: a checkpoint must not be newer than they are."""
        if self._file:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write out what is still held back."""
        if self._file and self._trackers:
            self._file.close()
            self._trackers.close()


def note(row: Mapping[str, float]) -> str:
    """Return the figures that a person watches, in one short line."""
    accuracy = row.get("batch/accuracy/image_to_text")
    seen = "" if accuracy is None else f"accuracy {accuracy:.0%}  "
    mfu = f"MFU {row['speed/mfu']:.0%}  " if "speed/mfu" in row else ""
    speed = f"{row['samples_per_second']:.0f} samples/s"
    return (
        f"loss {row.get('loss', math.nan):.3f}  {seen}{speed}  {mfu}"
        f"data wait {row['data_wait_share']:.0%}"
    )


def validation_note(figures: Mapping[str, float]) -> str:
    """Return the validation loss and what evaluators are mostly read for, in one line."""
    loss = figures.get("validation/loss")
    shown = [] if loss is None else [f"loss {loss:.3f}"]
    for name, value in figures.items():
        if name.rpartition("/")[2] in CHANCE:
            shown.append(f"{name.removeprefix('validation/')} {value:.1%}")
    return f"validation: {', '.join(shown)}"


def keep_rows(path: Path, is_kept: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Leave only some rows in a file of JSON lines, which need not be there, and return them."""
    kept = [row for row in read_lines(path) if is_kept(row)]
    write_bytes(path, "".join(map(_line, kept)).encode())
    return kept


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _number(value: Any) -> float:
    return value.item() if isinstance(value, torch.Tensor) else float(value)
