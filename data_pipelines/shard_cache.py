"""The shards of URLs and commands that are on this machine: a folder with a cap.

A shard that is elsewhere is a path in the cache that may not be there yet; its path says its URL,
and ``ensure`` fetches it whole. The cache is in the folder ``VLP_CACHE``; ``VLP_CACHE_GB`` caps it.
Shards that were used least recently make room for others, those that a reader holds last.
"""

import contextlib
import fcntl
import os
import re
import string
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote

from data_pipelines.fetch import download
from vlp.errors import UserError

NAME_LENGTH = 200
"""Characters of a URL in one part of a path; file systems take 255."""
GOES_ON = "%"
"""Ends a part of a path that the next part goes on with."""
EMPTY = "%00"
"""Stands for nothing between two slashes of a URL."""
MOST_NAMES = re.compile(r"[\w-][\w.-]*", re.ASCII)
PLAIN = "".join(sorted({*string.punctuation, " "} - {"%", "/"}))
"""Signs that a path holds as they are, beside letters and digits."""


def cache_folder() -> Path:
    """Return the folder of shards and indexes that have no better place on this machine.

    It holds nothing else: what ``VLP_CACHE`` holds beside it is never removed.
    """
    place = os.environ.get("VLP_CACHE") or tempfile.gettempdir()
    return _folder_in(place if os.path.isabs(place) else os.path.abspath(place))


@lru_cache(maxsize=1)
def _folder_in(place: str) -> Path:
    return Path(os.path.normpath(place), f"vlp-cache-{os.getuid()}")


def cached_path(url: str) -> Path:
    """Return where the cache keeps a URL or ``pipe:`` command; ``url_of`` is its inverse."""
    scheme, _, rest = url.partition(":" if url.startswith("pipe:") else "://")
    parts = [name for part in rest.split("/") for name in _file_names(part)]
    return Path("/".join([str(cache_folder()), scheme, *parts]))


def url_of(path: Path) -> str | None:
    """Return the URL of a path in the cache, or None for any other path."""
    folder = f"{cache_folder()}/"
    if not str(path).startswith(folder):
        return None
    scheme, _, rest = str(path).removeprefix(folder).partition("/")
    if scheme.startswith("."):
        return None
    parts = rest.replace(f"{GOES_ON}/", "").split("/")
    said = ("" if part == EMPTY else unquote(part, errors="surrogateescape") for part in parts)
    return scheme + (":" if scheme == "pipe" else "://") + "/".join(said)


def ensure(path: Path) -> Path:
    """Return the path once its shard is there, fetched where it has a URL.

    Processes of a machine that want the same shard fetch it once. One that makes room for others
    while it is open somewhere can be read to its end all the same.

    Raises:
        UserError: The shard cannot be fetched, or a file that has no URL is gone.
    """
    url = url_of(path)
    if path.exists():
        if url:
            _touch(path)
        return path
    if not url:
        raise UserError(f"The shard {path} is gone. Put it back, or leave it out.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f".{path.name}.lock")):
        if not path.exists():
            part = path.with_name(f".{path.name}.part")
            download(url, part)
            with _locked(cache_folder() / ".lock"):
                _make_room(part.stat().st_size)
                part.rename(path)
    return path


def hold(path: Path) -> BinaryIO | None:
    """Return a shard, fetched and open; until it is closed, others make room first.

    The system closes what a killed process holds. None: the shard made room before it was open.

    Raises:
        UserError: The shard cannot be fetched.
    """
    ensure(path)
    with _locked(cache_folder() / ".lock"), contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return os.fdopen(descriptor, "rb")
    return None


def cap_bytes() -> float:
    """Return how many bytes of shards the cache may hold.

    Raises:
        UserError: ``VLP_CACHE_GB`` is no number above 0.
    """
    text = os.environ.get("VLP_CACHE_GB") or "20"
    try:
        cap = float(text) * 1e9
        if not 0 < cap < float("inf"):
            raise ValueError
        return cap
    except ValueError:
        raise UserError(f"VLP_CACHE_GB is {text}. Write a number of gigabytes above 0.") from None


def _file_names(part: str) -> list[str]:
    """Return what stands in a path for a part of a URL: most often itself, never hidden."""
    if len(part) <= NAME_LENGTH and MOST_NAMES.fullmatch(part):
        return [part]
    text = quote(part, safe=PLAIN, errors="surrogateescape") or EMPTY
    pieces = [text[i : i + NAME_LENGTH] for i in range(0, len(text), NAME_LENGTH)]
    pieces[:-1] = [piece + GOES_ON for piece in pieces[:-1]]
    return [f"%2E{piece[1:]}" if piece.startswith(".") else piece for piece in pieces]


def _make_room(wanted: int) -> None:
    """Remove fetched shards until the cap is kept: the least recently used, those held last."""
    states = []
    for path in _files():
        with contextlib.suppress(FileNotFoundError):
            if path.name.startswith("."):
                _remove_stale(path)
            else:
                states.append((path.stat(), path))
    excess = wanted + sum(state.st_size for state, _ in states) - cap_bytes()
    if excess <= 0:
        return
    for state, path in sorted(states, key=lambda item: (_is_held(item[1]), item[0].st_atime_ns)):
        path.unlink(missing_ok=True)
        excess -= state.st_size
        if excess <= 0:
            return


def _files() -> Iterator[Path]:
    """Yield the shards in the cache, and what is beside them."""
    for place, folders, names in os.walk(cache_folder()):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in names)


def _remove_stale(path: Path) -> None:
    """Remove half a shard that nobody is fetching, left by a process that was killed."""
    if path.suffix == ".part":
        lock = path.with_suffix(".lock")
        with contextlib.suppress(BlockingIOError), _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            path.unlink(missing_ok=True)


def _is_held(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def _touch(path: Path) -> None:
    """Say that a shard was used just now, and keep the time it was fetched."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


@contextlib.contextmanager
def _locked(path: Path, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, kind)
        yield
