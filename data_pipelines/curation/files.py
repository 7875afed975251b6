"""What people give to filters, read once in a run: lists of words, entries, ids; models."""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

from vlp.errors import UserError

Reader = TypeVar("Reader", bound=Callable[..., Any])
_READERS: list[Any] = []
"""Of all functions that are read once, what they remember."""


def read_once(read: Reader) -> Reader:
    """Return a function that remembers what it read, in this process, until ``forget``."""
    remembered = lru_cache(read)
    _READERS.append(remembered)
    return cast(Reader, remembered)


def forget() -> None:
    """Forget what was read: another run of this process may find another model at the same path."""
    for remembered in _READERS:
        remembered.cache_clear()


@read_once
def read_lines(path: str) -> tuple[str, ...]:
    """Return the lines of a text file without white space at their ends, less empty ones.

    Raises:
        UserError: The file cannot be read, or holds no line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text in UTF-8. Give a text file.") from None
    lines = tuple(line for own in text.split("\n") if (line := own.strip()))
    if not lines:
        raise UserError(f"{path} is empty. Give a text file with an entry on each line.")
    return lines


@read_once
def file_hash(path: str) -> str:
    """Return 16 hex digits that follow from what is in a file.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
