"""Errors of a run of several processes: each is said once, and so is that a process was lost."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from data_pipelines.plan import hash63
from training.compute.gather import num_processes
from vlp.errors import UserError

LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Timed out waiting",
    "remote process exited",
)
"""How gloo and NCCL say that another process is gone or does not answer."""
HEAD_START_SECONDS = 3.0
"""For the main process, which writes the report before it says what all have to say."""
LISTENING_SECONDS = 1.0
"""A launcher ends all processes when one ends: so long the others let one speak."""
REASON = "the first error"
"""Where the processes leave each other why the run ended."""


@contextmanager
def errors_said_once() -> Iterator[None]:
    """Let one process say an error that several have; the others end silently, by the same code.

    The main process goes first, and an error that is another's alone is said by that one. That a
    process was lost is said only where none has said why.
    """
    try:
        yield
    except UserError as error:
        if not _is_first(str(error), reason=str(error)):
            _end_silently()
        raise
    except RuntimeError as error:
        if not is_lost(error):
            raise
        if reason_elsewhere() or not _is_first("lost"):
            _end_silently()
        raise UserError(
            "Another process of the run ended or does not answer; what it or the launcher "
            "printed says why. Run the same command again to go on from the last checkpoint."
        ) from None


def is_lost(error: BaseException) -> bool:
    """Return whether an error says that another process is gone."""
    return isinstance(error, dist.DistNetworkError) or any(sign in str(error) for sign in LOST)


def reason_elsewhere() -> str:
    """Return the first error that any process has said; nothing where none has, or none answers."""
    if num_processes() == 1:
        return ""
    try:
        store = _get_default_store()
        return store.get(REASON).decode() if store.check([REASON]) else ""
    except RuntimeError:  # the process that keeps the store is gone, too
        return ""


def _is_first(said: str, reason: str = "") -> bool:
    """Return whether this process is the first to say something, and leave the reason for all."""
    if num_processes() == 1:
        return True
    key = f"said {hash63(said)}"
    try:
        store, rank = _get_default_store(), dist.get_rank()
        end = time.monotonic() + HEAD_START_SECONDS
        while rank and time.monotonic() < end and not store.check([key]):
            time.sleep(0.05)
        if reason and not store.check([REASON]):
            store.set(REASON, reason)
        return store.add(key, 1) == 1
    except RuntimeError:
        return True


def _end_silently() -> None:
    time.sleep(LISTENING_SECONDS)
    raise SystemExit(2) from None
