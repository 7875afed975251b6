"""What asks a run to save, or to save and end: signals and the clock."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from training.compute.gather import num_processes
from vlp.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Asked to end, Ctrl-C, and the warning that Slurm sends by ``--signal=USR1@120``."""
ONE_PRESS_SECONDS = 1.0
"""A launcher passes the Ctrl-C on that the terminal sent already: so soon after, it is the same."""


class SaveRequests:
    """What is asked of a run from outside: to save, or to save and end; of all processes alike.

    Inside the block, signals are only heard, and answered after the step under way: by every
    process after the same step, though one alone may have got the signal. In a thread other than
    the main one, which alone can hear them, signals do what they did before.
    """

    def __init__(self, minutes: float, *, is_main: bool) -> None:
        """Save each time that so many minutes are over by the main process's clock; 0: never."""
        self.signal = 0
        """Number of the signal that ends the run; 0: none so far."""
        self._minutes, self._is_main = minutes, is_main
        self._saved = time.monotonic()
        self._heard, self._heard_at = 0, 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "SaveRequests":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as of a shell's job in background
                    self._before[number] = signal.signal(number, self._hear) or signal.SIG_DFL
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agree(self) -> bool:
        """Return whether a checkpoint is asked for now; every process calls this after every step.

        It costs one message of two numbers over gloo, which a GPU at work does not wait for.
        """
        is_time = self._minutes > 0 and time.monotonic() - self._saved >= 60 * self._minutes
        asked = torch.tensor([self._heard, int(is_time and self._is_main)])
        if num_processes() > 1:
            dist.all_reduce(asked, dist.ReduceOp.MAX)
        self.signal, is_time = asked.tolist()
        if is_time:
            self._saved = time.monotonic()
        return bool(self.signal or is_time)

    def raise_if_stopped(self, step: int, steps: int) -> None:
        """Raise Stopped if a signal ended the run before its last step; one process says so."""
        if self.signal and step < steps:
            told = (
                f"Stopped by {signal.Signals(self.signal).name} after step {step} of {steps}. "
                f"Run the same command again to go on."
            )
            raise Stopped(self.signal, told if self._is_main else "")

    def _hear(self, number: int, _: FrameType | None) -> None:
        is_again = self._heard and time.monotonic() - self._heard_at > ONE_PRESS_SECONDS
        if number == signal.SIGINT and is_again:
            raise KeyboardInterrupt
        if not self._heard:
            self._heard, self._heard_at = number, time.monotonic()
            if number == signal.SIGINT and self._is_main:  # print may be what was interrupted
                os.write(2, b"\nvlp: stopping after this step; Ctrl-C again stops at once.\n")
