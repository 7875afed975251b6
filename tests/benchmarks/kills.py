"""Train once as it is and once with SIGKILL every so many seconds, and compare what comes out."""

import subprocess
import sys
from pathlib import Path

from vlp.checkpoint import list_checkpoints


def compare_with_kills(argv: list[str], out: Path, seconds: float) -> None:
    """Print what differs between a run of these words and one that is killed; exit 1 if anything.

    Compared are the bytes of the last weights, the state of optimizer, memory and ledger, and all
    rows of metrics.jsonl less what the clock decides.

    Args:
        argv: Words of ``vlp train`` without ``--out``.
        out: Folder for the runs ``whole`` and ``killed``, which go on where they are there already.
        seconds: Time between the start of a process and its SIGKILL.
    """
    sys.path.append(str(Path(__file__).parents[1]))
    from training_support import differences  # what the tests compare

    command = [sys.executable, "-m", "vlp", *argv, "--out"]
    subprocess.run([*command, str(out / "whole")], check=True)
    kills, lost, before = 0, 0, []
    while (code := _run_for(seconds, [*command, str(out / "killed")])) is None:
        left = [folder.name for folder in list_checkpoints(out / "killed")]
        kills, lost = kills + 1, lost + 1 if left == before else 0
        before = left
        print(f"kill {kills}: {' '.join(left) or 'no checkpoint yet'}", flush=True)
        if lost == 3:
            raise SystemExit("3 kills without a newer checkpoint. Give --kill-every more seconds.")
    if code:
        raise SystemExit(code)
    found = differences(out / "whole", out / "killed")
    print(f"{kills} kills. Different: {', '.join(found) or 'nothing'}.")
    raise SystemExit(bool(found))


def _run_for(seconds: float, command: list[str]) -> int | None:
    """Return a command's exit code, or None where it was killed since it took longer."""
    process = subprocess.Popen(command)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None
