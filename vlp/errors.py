"""The one error meant for the person at the keyboard."""

import difflib
import errno
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""Codes of an OSError that says that the disk is full."""
SHOWN = 12
"""Names listed where none comes near what was written."""
FIRST_PROCESS_SECONDS = 30.0
"""By when the first of several processes has started, and said what is wrong with the options."""


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to write.

    The command line prints it as one line and ends with exit code 2.
    """


class Stopped(KeyboardInterrupt):
    """A signal stopped a command that has saved what it did; exit code 128 + its number."""

    def __init__(self, number: int, told: str) -> None:
        """Hold the signal's number and a line for the person; an empty one is not printed."""
        super().__init__(told)
        self.number = number


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Turn the failure of an import into a line that says how to install what is missing.

    Args:
        extra: Of this package, such as ``filters``.
        what: Such as ``Parsing captions takes spaCy``.
    """
    try:
        yield
    except ImportError:
        raise UserError(f'{what}. Install it: pip install "vlp[{extra}]".') from None


@contextmanager
def said_by_first_process() -> Iterator[None]:
    """Let the first of a launcher's processes say a mistake in the block, which all of them meet.

    The launcher ends the others when the first has ended; if none does, each says it after all.
    """
    try:
        yield
    except UserError:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(FIRST_PROCESS_SECONDS)
        raise


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that names what was probably meant, or else everything known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f"Known: {', '.join(known[:SHOWN])}{more}."


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without its full stop."""
    return str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__
