"""Files that people give to filters: lists of words, entries, ids."""

import hashlib
from functools import lru_cache
from pathlib import Path

from vlp.errors import UserError


@lru_cache
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


@lru_cache
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
