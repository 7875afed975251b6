"""What a folder should hold: sizes and hashes, so that damage is found before it is used."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from vlp.output import write_json

MANIFEST = "manifest.json"


def seal(folder: Path) -> None:
    """Write down the size and hash of every file below a folder, and wait until all is on disk."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        files[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
        flush(path)
    write_json(folder / MANIFEST, {"files": files})
    flush(folder)


def damage(folder: Path, names: Sequence[str] | None = None) -> str | None:
    """Return what is wrong with the first file that is not as it was sealed; None if all are.

    A folder that was never sealed, or whose files of these names were not, is taken as it is.

    Args:
        folder: What ``seal`` was called on.
        names: Files to look at; all that were sealed if None.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    for name in files if names is None else set(names) & set(files):
        path, sealed = folder / name, files[name]
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != sealed["bytes"]:
            return f"{name} has {size:,} of {sealed['bytes']:,} bytes"
        if _sha256(path) != sealed["sha256"]:
            return f"{name} is not as it was written"
    return None


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk: a rename must not come before its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
