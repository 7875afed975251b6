"""A few steps under torch's profiler: a trace on disk, and a table for the person."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from vlp.console import say, show_table

PROFILE = "profile"
"""Folder of the traces, in that of the run."""
NUM_OPERATORS = 12


class StepProfiler:
    """Watches the steps of a window, those of one process."""

    def __init__(self, run: Path, steps: range, *, is_main: bool) -> None:
        self._folder = run / PROFILE
        self._steps = steps if is_main else range(0)
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """Begin to watch where this step, counted from 1, is the first of the window left."""
        if step in self._steps and self._profile is None:
            kinds = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                kinds.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=kinds, record_shapes=True)
            self._profile.start()

    def after(self, step: int, *, is_last: bool) -> None:
        """Write the trace and say what took longest where this was the window's last step."""
        if self._profile is None or not (is_last or step == self._steps[-1]):
            return
        done, self._profile, self._steps = self._profile, None, range(0)
        done.stop()
        self._folder.mkdir(exist_ok=True)
        trace = self._folder / f"step_{step:07d}.pt.trace.json"  # the end that TensorBoard wants
        done.export_chrome_trace(str(trace))
        say(f"The trace of the steps up to {step} is {trace}.")
        _show_operators(done)


def _show_operators(done: profile) -> None:
    """Print the operators with the most time of their own, on the GPU if there is one."""
    where = "device" if torch.cuda.is_available() else "cpu"
    events = [(getattr(e, f"self_{where}_time_total"), e) for e in done.key_averages()]
    total = max(1e-9, sum(time for time, _ in events))
    most = sorted(events, key=lambda event: -event[0])[:NUM_OPERATORS]
    rows = [(e.key, e.count, f"{time / 1e3:.1f}", f"{time / total:.1%}") for time, e in most]
    show_table(["operator", "calls", "ms", "share"], rows)
