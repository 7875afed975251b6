"""What is at a URL or comes out of a ``pipe:`` command; tried again where that may help.

The door to fsspec. Pauses between tries double, since a server that is down stays so for a while.
"""

import contextlib
import importlib.util
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from vlp.errors import UserError

Result = TypeVar("Result")

SECONDS_BETWEEN_TRIES = (1, 2, 4, 8)
SECONDS_OF_SILENCE = 60
"""After which a connection is given up; how long a shard may take is not limited."""
CUT_OFF = 141
"""Exit code of a pipe whose last part, such as ``head``, has read enough."""
GUARDED = """
exec 3<&0 </dev/null
"$@" 3<&- &
command=$!
(read -r _ <&3; trap '' TERM; kill -TERM 0; sleep 1; kill -KILL 0) >/dev/null 2>&1 &
guard=$!
wait $command
status=$?
exec 2>/dev/null
kill $guard
wait $guard
exit $status
"""
"""Runs a command, and ends its process group when standard input is closed: whoever holds the other
end of that may be killed in any way."""


def download(url: str, path: Path) -> None:
    """Write what a URL or a ``pipe:`` command gives into a file.

    Raises:
        UserError: It cannot be had, with the reason.
    """
    _fetched(lambda: _download(url, path), url)


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


def size_of(url: str) -> int | None:
    """Return the bytes at a URL as its source states them; None where it does not say."""
    with contextlib.suppress(Exception):  # asked once, for an estimate
        file_system, name = _file_system(url)
        return file_system.size(name)
    return None


def matching_urls(name: str) -> list[str]:
    """Return the URLs that a name with ``*`` stands for, or the name itself.

    Raises:
        UserError: There is none, or nobody can say.
    """
    if name.startswith("pipe:") or "*" not in name:
        return [name]

    def matches() -> list[str]:
        file_system, pattern = _file_system(name)
        return sorted(file_system.unstrip_protocol(path) for path in file_system.glob(pattern))

    found = _fetched(matches, name)
    if not found:
        raise UserError(f"There are no shards at {name}.")
    return found


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
        _run(url.removeprefix("pipe:"), part)
        return
    file_system, name = _file_system(url)
    file_system.get_file(name, str(part))
    try:
        size = file_system.size(name)
    except FileNotFoundError:  # fsspec's word for a server that does not tell
        size = None
    if size is not None and size != part.stat().st_size:
        raise OSError(f"got {part.stat().st_size} of {size} bytes")


def _run(command: str, part: Path) -> None:
    """Write what a shell command prints into a file; nothing of it outlives this process."""
    shell = ["bash", "-o", "pipefail", "-c"] if shutil.which("bash") else ["sh", "-c"]
    _end_without_run()
    with part.open("wb") as file, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            ["sh", "-c", GUARDED, "sh", *shell, command],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=errors,
            start_new_session=True,  # a process group of its own
        )
        assert process.stdin is not None
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1)
                _end_without_run()
        finally:
            process.stdin.close()
            process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    if process.returncode not in (0, CUT_OFF):
        raise OSError(f"exit code {process.returncode}" + (f", {said[-1]}" if said else ""))
    if not part.stat().st_size:
        raise OSError("the command gave nothing")


def _end_without_run() -> None:
    """End a worker whose run was killed: it would find out only when its command has ended."""
    run = multiprocessing.parent_process()
    if run and run.pid != os.getppid():
        raise SystemExit


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
