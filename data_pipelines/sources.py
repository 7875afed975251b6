"""The names of shards to tar files on this machine: folders, globs, brace ranges, URLs, commands.

A shard that is elsewhere is a path in the cache that may not be there yet; its path says its URL,
and ``ensure`` fetches it whole. The cache is in the folder ``VLP_CACHE``; ``VLP_CACHE_GB`` caps it.
"""

import contextlib
import fcntl
import glob
import importlib.util
import os
import re
import shutil
import string
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import braceexpand
import fsspec

from vlp.errors import UserError

Source = str | Path | Sequence[str | Path]
Result = TypeVar("Result")

SECONDS_BETWEEN_TRIES = (1, 2, 4, 8)
SECONDS_OF_SILENCE = 60
"""After which a connection is given up; how long a shard may take is not limited."""
NAME_LENGTH = 200
"""Characters of a URL in one part of a path; file systems take 255."""
GOES_ON = "%"
"""Ends a part of a path that the next part goes on with."""
EMPTY = "%00"
"""Stands for nothing between two slashes of a URL."""
MOST_NAMES = re.compile(r"[\w-][\w.-]*", re.ASCII)
PLAIN = "".join(sorted({*string.punctuation, " "} - {"%", "/"}))
"""Signs that a path holds as they are, beside letters and digits."""


def find_shards(source: Source) -> list[Path]:
    """Return the tar files that a source names, sorted by name; those of URLs are in the cache.

    A source is a folder, a tar file, a glob, a brace range such as ``{000..009}.tar``, a URL
    (``https``, ``s3``, ``gs``, ``hf``) with or without a range, ``pipe:COMMAND``, or several.

    Raises:
        UserError: There is none, or one that was named is missing.
    """
    if isinstance(source, list | tuple):
        return [shard for part in source for shard in find_shards(part)]
    text = str(source)
    if not text.strip():
        raise UserError("The name of the shards is empty. Give a folder of tar files, or one.")
    if os.path.isdir(text):
        return _in_folder(text)
    if os.path.isfile(text):  # whatever braces and brackets are in its name
        return [Path(text)]
    try:
        # A command keeps its backslashes.
        names = list(braceexpand.braceexpand(text, escape=not text.startswith("pipe:")))
    except ValueError:
        raise UserError(
            f"Cannot read {text}: a brace has no partner. Write {{000..009}}.tar."
        ) from None
    if text.startswith("pipe:") and not text.removeprefix("pipe:").strip():
        raise UserError('The command is empty. Write "pipe:COMMAND", which prints a tar.')
    if is_remote(text):
        return [cached_path(url) for name in names for url in _urls(name)]
    found = []
    for name in names:
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        files = [Path(match) for match in matches if os.path.isfile(match)]
        if not files:
            raise UserError(f"There are no shards at {name}. Give a folder of tar files, or one.")
        found += files
    return found


def relative_names(shards: Sequence[Path]) -> list[str]:
    """Return the path of each shard below the folder of all of them: as told wherever they are."""
    paths = [os.path.abspath(shard) for shard in shards]
    root = len(os.path.commonpath({os.path.dirname(path) for path in paths}))
    return [path[root:].lstrip(os.sep) for path in paths]


def is_remote(name: str) -> bool:
    """Return whether a name is a URL or a command and no path."""
    return name.startswith("pipe:") or "://" in name


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

    Processes of a machine that want the same shard fetch it once. The shards that were used least
    recently make room: one that is open somewhere can be read to its end all the same.

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
            _fetched(lambda: _download(url, part), url)
            with _locked(cache_folder() / ".lock"):
                _make_room(part.stat().st_size)
                part.rename(path)
    return path


def read_small(url: str) -> bytes | None:
    """Return a small file at a URL, or None where there is none.

    Raises:
        UserError: Nobody can say, since the source does not answer.
    """

    def read() -> bytes | None:
        try:
            file_system, name = _file_system(url)
            return file_system.cat_file(name)
        except (FileNotFoundError, PermissionError, ValueError, ImportError):
            return None
        except Exception as error:
            if 400 <= getattr(error, "status", 0) < 500:  # some hide what is not there
                return None
            raise

    return _tried(read, url)


def _urls(name: str) -> list[str]:
    """Return the URLs that a name with ``*`` stands for, or the name itself."""
    if name.startswith("pipe:") or "*" not in name:
        return [name]

    def matches() -> list[str]:
        file_system, pattern = _file_system(name)
        return sorted(file_system.unstrip_protocol(path) for path in file_system.glob(pattern))

    found = _fetched(matches, name)
    if not found:
        raise UserError(f"There are no shards at {name}.")
    return found


def _in_folder(folder: str) -> list[Path]:
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        # A hidden name is a folder that a command has not finished, or another system's litter.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        tars = (name for name in files if name.endswith(".tar") and not name.startswith("."))
        found += [os.path.join(place, name) for name in tars]
    if not found and os.path.isfile(os.path.join(folder, "keep.parquet")):
        raise UserError(
            f"{folder} holds a keep-list and no shards. Write --data.keep {folder} beside the "
            f"--data.shards that it was made of."
        )
    if not found:
        raise UserError(
            f"{folder} holds no tar files. Give a folder with 000000.tar, "
            f"such as `vlp pack` or `vlp filter` writes."
        )
    return [Path(path) for path in sorted(found)]


def _file_names(part: str) -> list[str]:
    """Return what stands in a path for a part of a URL: most often itself, never hidden."""
    if len(part) <= NAME_LENGTH and MOST_NAMES.fullmatch(part):
        return [part]
    text = quote(part, safe=PLAIN, errors="surrogateescape") or EMPTY
    pieces = [text[i : i + NAME_LENGTH] for i in range(0, len(text), NAME_LENGTH)]
    pieces[:-1] = [piece + GOES_ON for piece in pieces[:-1]]
    return [f"%2E{piece[1:]}" if piece.startswith(".") else piece for piece in pieces]


def _fetched(call: Callable[[], Result], url: str) -> Result:
    """Return what a call to a URL gives, tried again where that may help.

    Raises:
        UserError: It cannot be had, with the reason.
    """
    try:
        return _tried(call, url)
    except ImportError as error:
        raise UserError(f'{error}. Or: pip install "vlp[remote]".') from None
    except FileNotFoundError:
        raise UserError(f"There is no shard at {url}.") from None
    except ValueError as error:  # no such protocol
        raise UserError(f"Cannot fetch {url}: {error}") from None


def _tried(call: Callable[[], Result], url: str) -> Result:
    """Return what a call gives, tried again where that may help."""
    for seconds in (*SECONDS_BETWEEN_TRIES, None):
        try:
            return call()
        except (ImportError, FileNotFoundError, ValueError):
            raise
        except Exception as error:  # fsspec's file systems raise what their libraries raise
            if seconds is None:
                tries = len(SECONDS_BETWEEN_TRIES) + 1
                said = " ".join(f"{error}".split()) or type(error).__name__
                raise UserError(f"Cannot fetch {url} in {tries} tries: {said}") from None
            time.sleep(seconds)
    raise AssertionError


def _download(url: str, part: Path) -> None:
    if url.startswith("pipe:"):
        with part.open("wb") as file:
            command = url.removeprefix("pipe:")
            shell = ["bash", "-o", "pipefail", "-c"] if shutil.which("bash") else ["sh", "-c"]
            done = subprocess.run([*shell, command], stdout=file, stderr=subprocess.PIPE)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise OSError(f"exit code {done.returncode}" + (f", {said[-1]}" if said else ""))
        if not part.stat().st_size:
            raise OSError("the command gave nothing")
        return
    file_system, name = _file_system(url)
    file_system.get_file(name, str(part))
    try:
        size = file_system.size(name)
    except FileNotFoundError:  # fsspec's word for a server that does not tell
        size = None
    if size is not None and size != part.stat().st_size:
        raise OSError(f"got {part.stat().st_size} of {size} bytes")


def _file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the name in it."""
    options = {}
    if url.startswith(("http://", "https://")) and importlib.util.find_spec("aiohttp"):
        from aiohttp import ClientTimeout  # its own default ends every download after 5 minutes

        silence = ClientTimeout(
            total=None, sock_connect=SECONDS_OF_SILENCE, sock_read=SECONDS_OF_SILENCE
        )
        options["client_kwargs"] = {"timeout": silence}
    return fsspec.core.url_to_fs(url, **options)


def _make_room(wanted: int) -> None:
    """Remove the fetched shards that were used least recently, until the cap is kept."""
    cap = _cap()
    found = []
    for place, folders, files in os.walk(cache_folder()):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(place, name) for name in files if not name.startswith(".")]
    states = []
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            states.append((os.stat(path), path))
    total = wanted + sum(state.st_size for state, _ in states)
    for state, path in sorted(states, key=lambda item: item[0].st_atime_ns):
        if total <= cap:
            return
        Path(path).unlink(missing_ok=True)
        total -= state.st_size


def _cap() -> float:
    """Return how many bytes of shards the cache may hold."""
    text = os.environ.get("VLP_CACHE_GB") or "20"
    try:
        cap = float(text) * 1e9
        if not 0 < cap < float("inf"):
            raise ValueError
        return cap
    except ValueError:
        raise UserError(f"VLP_CACHE_GB is {text}. Write a number of gigabytes above 0.") from None


def _touch(path: Path) -> None:
    """Say that a shard was used just now, and keep the time it was fetched."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
