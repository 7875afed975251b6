"""Output folders: never half written under their final name, never another command's by mistake.

Every folder that a command writes holds ``config.json``: the command and what it was told.
"""

import ctypes
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from vlp.errors import UserError

LOCK = ".lock"
BEGUN = ".begun"
"""In a folder under its temporary name, which command began it."""
UNFINISHED = ".*.part"
"""What a file is called until it is whole; who writes it may be killed, and another begin anew."""
RECORD = "config.json"
"""Name of the record of who wrote a folder; another where ``config.json`` is one of its files."""


@contextmanager
def output_folder(
    path: Path,
    command: str,
    config: dict[str, Any],
    *,
    inputs: Sequence[Path] = (),
    overwrite: bool = False,
    record: str = RECORD,
    keeps: Sequence[str] = (),
) -> Iterator[Path]:
    """Yield an empty folder that takes the name ``path`` when the block ends without an error.

    The same command with the same config replaces what it wrote before.

    Args:
        path: The folder.
        command: Who writes it.
        config: What the command was told.
        inputs: What it reads.
        overwrite: Replace what another command or config wrote.
        record: Name of the record.
        keeps: Names, or patterns of names, that an earlier run of the command which was stopped may
            have left in the folder; it tells itself what of them is still valid. All else goes.

    Raises:
        UserError: ``path`` holds what another command, another config or a person wrote, or another
            process writes it now.
    """
    path = path.absolute()  # so that "." has a name, too
    check_output(path, command, config, inputs=inputs, overwrite=overwrite, name=record)
    part = path.with_name(f".{path.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    with lock_folder(part, path):
        _begin(part, command, keeps)
        try:
            yield part
        except BaseException:
            if not keeps:
                shutil.rmtree(part, ignore_errors=True)
            raise
        for left in (part / LOCK, part / BEGUN, *part.rglob(UNFINISHED)):
            left.unlink()
        write_record(part, command, config, record)
        _rename(part, path)


def _begin(part: Path, command: str, keeps: Sequence[str]) -> None:
    """Remove from a folder what the command may not keep of what is there."""
    begun = part / BEGUN
    is_own = begun.is_file() and begun.read_text() == command
    for left in part.iterdir():
        if left.name == LOCK or (is_own and any(left.match(name) for name in keeps)):
            continue
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    begun.write_text(command)


def lock_folder(folder: Path, path: Path | None = None) -> IO[str]:
    """Lock a folder for this process, but not for those that it forks: they may outlive it.

    Args:
        folder: The lock is a file in it; it holds until that is closed.
        path: The name of the folder for the person.

    Raises:
        UserError: Another process has it, or nobody may write there.
    """
    try:
        file = (folder / LOCK).open("w")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS):
            raise
        raise UserError(f"Cannot write to {path or folder}: {error.strerror}.") from None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system without locks
            return file
        raise UserError(
            f"Another process writes {path or folder}. Wait until it has ended, or give another "
            f"folder."
        ) from None
    return file


def _rename(part: Path, path: Path) -> None:
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists() and _exchange(part, path):
        part.rename(old)
    else:
        if path.exists():
            path.rename(old)
        part.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders swap names: at any time there is one of each. False if they cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # not Linux
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0


def check_output(
    path: Path,
    command: str,
    config: dict[str, Any],
    *,
    inputs: Sequence[Path] = (),
    overwrite: bool = False,
    free: Sequence[str] = (),
    name: str = RECORD,
) -> None:
    """Raise UserError unless this command with this config may write the folder ``path``.

    Fields named in ``free``, as ``data.workers``, may differ from those it was written with.
    """
    _check_apart(path, inputs)
    if path.is_file():
        raise UserError(f"The output {path} is a file. Give the name of a folder.")
    if not path.exists() or not any(path.iterdir()):
        return
    record = read_record(path, name)
    if record is None:
        raise UserError(
            f"{path} holds files that no vlp command wrote, such as "
            f"{min(p.name for p in path.iterdir())}. Give a new folder."
        )
    if overwrite:
        return
    if record["command"] != command:
        raise UserError(
            f"{path} was written by `vlp {record['command']}`. "
            f"Give another folder, or --overwrite to replace it."
        )
    changes = [
        change
        for change in differences(record["config"], json.loads(json.dumps(config, default=str)))
        if change.split(" ", 1)[0] not in free
    ]
    if changes:
        raise UserError(
            f"{path} was written with another config: {'; '.join(changes)}. "
            f"Give another folder, or --overwrite to replace it."
        )


def _check_apart(path: Path, inputs: Sequence[Path]) -> None:
    out, folders = str(path.resolve()), {}
    for source in inputs:  # may be 100,000 shards of a few folders
        folder = source.parent
        if folder not in folders:
            folders[folder] = folder.resolve()
        read = str(source.resolve() if source.is_symlink() else folders[folder] / source.name)
        if f"{read}{os.sep}".startswith(f"{out}{os.sep}") or out.startswith(f"{read}{os.sep}"):
            raise UserError(
                f"The output {path} is the input {source}, holds it or lies in it. "
                f"Give another output folder."
            )


def take_over(earlier: Path, part: Path, names: Iterable[str]) -> None:
    """Put files of an earlier output into one that is begun, where it has none of their names.

    They are linked, or else copied; who reads them tells whether they are still valid.

    Args:
        earlier: The folder.
        part: What ``output_folder`` yields.
        names: Of files, or of folders of files.
    """
    for name in names:
        path = earlier.absolute() / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            target = part / file.relative_to(earlier.absolute())
            if file.is_file() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(file, target)
                except OSError:  # another file system, or one without links
                    shutil.copy2(file, target)


def remove_output(path: Path) -> None:
    """Remove a folder that a command wrote; one that no command wrote is never touched."""
    if read_record(path) is not None:
        shutil.rmtree(path)


def write_record(folder: Path, command: str, config: dict[str, Any], name: str = RECORD) -> None:
    """Write down which command wrote a folder, and what it was told."""
    write_json(folder / name, {"command": command, "config": config})


def read_record(folder: Path, name: str = RECORD) -> dict[str, Any] | None:
    """Return ``{"command": ..., "config": ...}`` of a folder that a command wrote, or None."""
    try:
        record = json.loads((folder / name).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"command", "config"} <= set(record) else None


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return what changed as ``"data.batch_size was 256, is 512"``, in the order of the new."""
    found = []
    for name in dict.fromkeys([*new, *old]):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name} was {before!r}, is {after!r}")
    return found


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"data.batch_size": 256}`` of ``{"data": {"batch_size": 256}}``, and so on."""
    found = {}
    for name, value in config.items():
        inner = isinstance(value, dict)
        found |= flatten(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


def write_json(path: Path, data: Any) -> None:
    """Write JSON under a temporary name, then rename: a reader sees the old file or the new."""
    text = json.dumps(data, indent=1, default=str, ensure_ascii=False)
    # Half of a pair of surrogates, as in names that are no UTF-8, is spelt as JSON spells it.
    write_bytes(path, f"{text}\n".encode(errors="backslashreplace"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a ``.jsonl`` file; none where it is missing.

    A line that is not whole is left out: the last one of a process that was killed while it wrote.
    """
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that is whole or not there."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write; on the disk, it takes the name ``path`` when the block ends well.

    Its temporary name is this process's own, so that of two who write it the last one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
