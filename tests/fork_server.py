"""Runs as real processes that start in no time: forks of one that has imported everything.

`ForkServer.start` gives the command to the forking process, which marks in shared memory what a run
does just then, so that whoever kills it knows what it was killed in.
"""

import json
import mmap
import subprocess
import sys
import time
from pathlib import Path

PHASES = ("between", "step", "save", "evaluation")

FORKS = f"""
import json, mmap, os, signal, sys, torch, torch.utils.tensorboard
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests
from training import loop
from vlp import cli
marks = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), {len(PHASES)})
def marked(phase, function):
    def call(*arguments, **options):
        before = marks[0]
        marks[phase], marks[0] = min(255, marks[phase] + 1), phase
        try:
            return function(*arguments, **options)
        finally:
            marks[0] = before
    return call
loop.take_step, loop.save, loop.validate = (
    marked(phase, f) for phase, f in enumerate((loop.take_step, loop.save, loop.validate), 1)
)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        os.setsid()
        said = os.open(sys.argv[1] + ".said", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(said, 1), os.dup2(said, 2)
        code = 0
        try:
            cli.main(json.loads(line))
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class ForkServer:
    """Starts commands one after the other."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        marks, self._said = folder / "marks", folder / "marks.said"
        marks.write_bytes(bytes(len(PHASES)))
        with marks.open("r+b") as file:
            self._marks = mmap.mmap(file.fileno(), len(PHASES))
        self._forks = subprocess.Popen(
            [sys.executable, "-c", FORKS, str(marks)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            cwd=Path(__file__).parents[1],
        )

    def start(self, *argv: str) -> int:
        """Start ``vlp`` with these words and return its process's id."""
        self._marks[:] = bytes(len(PHASES))
        self._forks.stdin.write(json.dumps(argv) + "\n")
        self._forks.stdin.flush()
        return int(self._forks.stdout.readline())

    def wait_for(self, phase: str, times: int) -> None:
        """Return when the run has begun a phase so many times, or ended."""
        number, end = PHASES.index(phase), time.monotonic() + 120
        while self._marks[number] < times:
            assert time.monotonic() < end, f"no {phase} number {times}: {self.said}"
            time.sleep(0.0005)

    def end(self) -> int:
        """Wait until the run has ended; return its exit code, or the signal that ended it as -9."""
        return int(self._forks.stdout.readline())

    @property
    def phase(self) -> str:
        """What the run does, or did when it ended."""
        return PHASES[self._marks[0]]

    @property
    def said(self) -> str:
        """What the last run printed."""
        return self._said.read_text()

    def close(self) -> None:
        """End; no run is left."""
        self._forks.stdin.close()
        self._forks.wait()
        self._forks.stdout.close()
