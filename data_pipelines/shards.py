"""Read and write shards: WebDataset tars of ``key.jpg``, ``key.txt`` and ``key.json``.

The only file that knows tar files. A shard is indexed once by its headers, so any sample is one
seek away; members of a sample may stand in any order and need not be neighbours.
"""

import glob
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import braceexpand
from webdataset.writer import TarWriter

from data_pipelines.faults import Faults, SampleFault
from vlp.errors import UserError
from vlp.types import Sample

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
SIGNATURES = {
    b"\x89PNG": "png",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
}


class Member(NamedTuple):
    """Where one file of a sample lies inside its shard, in bytes."""

    offset: int
    size: int


class Entry(NamedTuple):
    """One sample of a shard, not yet read."""

    shard: Path
    key: str
    members: dict[str, Member]
    """By extension without the first dot, lower case: ``jpg``, ``txt``, ``json``."""

    def extension(self) -> str | None:
        """Return the extension of the image, or None where there is none."""
        return next((e for e in IMAGE_EXTENSIONS if e in self.members), None)


@dataclass(frozen=True)
class ShardSet:
    """The usable samples of some shards, in shard order and then in the order of the tar."""

    entries: list[Entry]
    shards: list[Path]
    faults: Faults = field(default_factory=Faults)
    """What was found wrong while the headers were read."""

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Sample]:
        """Yield every sample; one that cannot be read is counted under its reason."""
        for entry in self.entries:
            try:
                yield read(entry)
            except SampleFault as fault:
                self.faults.add(str(fault), entry.shard.name, entry.key)


def open_shards(source: str | Path | Sequence[str | Path]) -> ShardSet:
    """Index the shards of a folder, a tar file, a glob or a brace range such as ``{000..009}.tar``.

    Raises:
        UserError: There is no shard, a shard is missing, or no sample has an image and a caption.
    """
    shards = find_shards(source)
    faults = Faults()
    entries = [entry for shard in shards for entry in index(shard, faults)]
    if not entries:
        reasons = f" ({faults.summary()})" if faults else ""
        raise UserError(
            f"{_name(source)} holds no sample with an image and a caption{reasons}. A sample is "
            f"KEY.jpg (or png, webp) and KEY.txt in a tar; `vlp pack` makes such shards."
        )
    return ShardSet(entries, shards, faults)


def find_shards(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the tar files that a source names, sorted by name.

    Raises:
        UserError: There is none, or one that was named is missing.
    """
    if isinstance(source, list | tuple):
        return [shard for part in source for shard in find_shards(part)]
    text = str(source)
    if not text.strip():
        raise UserError("The name of the shards is empty. Give a folder of tar files, or one.")
    if Path(text).is_dir():
        # A hidden name is a folder that a command has not finished, or another system's litter.
        found = [
            path
            for path in sorted(Path(text).rglob("*.tar"))
            if not any(part.startswith(".") for part in path.relative_to(text).parts)
        ]
        if not found:
            raise UserError(
                f"{text} holds no tar files. Give a folder with 000000.tar, "
                f"such as `vlp pack` or `vlp filter` writes."
            )
        return found
    try:
        names = list(braceexpand.braceexpand(text))
    except ValueError:
        raise UserError(
            f"Cannot read {text}: a brace has no partner. Write {{000..009}}.tar."
        ) from None
    found = []
    for name in names:
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        found += [Path(match) for match in matches if Path(match).is_file()]
        if not any(Path(match).is_file() for match in matches):
            raise UserError(f"There are no shards at {name}. Give a folder of tar files, or one.")
    return found


def index(shard: Path, faults: Faults) -> list[Entry]:
    """Return the usable samples of one shard; what is not usable is counted under its reason."""
    entries = []
    for key, members in _find_members(shard, faults).items():
        entry = Entry(shard, key, members)
        if entry.extension() is None:
            faults.add("no image", shard.name, key)
        elif not {"txt", "json", "cls"} & set(members):
            faults.add("no caption", shard.name, key)
        else:
            entries.append(entry)
    return entries


def read(entry: Entry) -> Sample:
    """Return one sample: its image still encoded, its caption and its metadata.

    The caption is ``.txt``, or ``caption`` of ``.json`` (img2dataset). A sample with a class
    (``.cls``) may have none.

    Raises:
        SampleFault: The caption is missing or no UTF-8, the metadata is no JSON object, or the
            class is no number.
    """
    extension = entry.extension()
    assert extension is not None, "an entry without an image is never indexed"
    found = read_members(entry, (extension, "txt", "json", "cls"))
    try:
        metadata = json.loads(found.get("json", b"{}"))
        if not isinstance(metadata, dict):
            raise SampleFault("metadata is no JSON object")
        if "cls" in found:
            metadata["cls"] = _class_number(found["cls"])
        text = found["txt"].decode() if "txt" in found else str(metadata.get("caption") or "")
    except UnicodeDecodeError:
        raise SampleFault("caption or metadata is no UTF-8") from None
    except ValueError:
        raise SampleFault("metadata is no JSON object") from None
    if not text.strip() and "cls" not in metadata:
        raise SampleFault("caption is empty" if "txt" in found else "no caption")
    return Sample(entry.key, found[extension], text.strip(), metadata)


def read_members(entry: Entry, extensions: Sequence[str]) -> dict[str, bytes]:
    """Return the bytes of those of a sample's files that it has."""
    file = os.open(entry.shard, os.O_RDONLY)
    try:
        return {
            extension: os.pread(file, member.size, member.offset)
            for extension in extensions
            if (member := entry.members.get(extension))
        }
    finally:
        os.close(file)


def write_shards(
    samples: Iterable[Sample], folder: Path, *, samples_per_shard: int = 1000
) -> tuple[int, int]:
    """Write samples to ``000000.tar`` and on; image bytes go in as they are.

    Keys are made unique and free of dots, since a reader takes what follows the first dot of a
    name for the extension: ``a.b`` becomes ``a_b``, and the second of two ``a_b`` ``a_b-2``.

    Returns:
        The number of samples and the number of shards.

    Raises:
        UserError: ``samples_per_shard`` is below 1.
    """
    if samples_per_shard < 1:
        raise UserError(f"samples_per_shard is {samples_per_shard}. Give 1 or more.")
    folder.mkdir(parents=True, exist_ok=True)
    keys: set[str] = set()
    count, writer = 0, None
    for count, sample in enumerate(samples, 1):
        if (count - 1) % samples_per_shard == 0:
            if writer:
                writer.close()
            path = folder / f"{(count - 1) // samples_per_shard:06d}.tar"
            # A time of 0 makes the bytes of a shard a function of its samples alone.
            writer = TarWriter(str(path), encoder=False, mtime=0)
        assert writer is not None
        writer.write(_members(sample, _free_key(sample.key, keys)))
    if writer:
        writer.close()
    return count, -(-count // samples_per_shard)


def image_extension(data: bytes) -> str:
    """Return ``png``, ``webp``, ``gif``, ``bmp`` or ``tif`` by the first bytes, else ``jpg``."""
    if data[8:12] == b"WEBP":
        return "webp"
    return next((name for start, name in SIGNATURES.items() if data.startswith(start)), "jpg")


def _free_key(key: str, taken: set[str]) -> str:
    """Return a key that no sample has yet and that a reader finds again, and take it."""
    folder, _, name = key.strip("/").rpartition("/")
    name = name.replace(".", "_") or "_"
    wanted = f"{folder}/{name}" if folder else name
    free, number = wanted, 1
    while free in taken:
        number += 1
        free = f"{wanted}-{number}"
    taken.add(free)
    return free


def _members(sample: Sample, key: str) -> dict[str, Any]:
    members: dict[str, Any] = {"__key__": key, image_extension(sample.image): sample.image}
    members["txt"] = sample.text.encode()
    if sample.metadata:
        members["json"] = json.dumps(sample.metadata, ensure_ascii=False).encode()
    return members


def _find_members(shard: Path, faults: Faults) -> dict[str, dict[str, Member]]:
    """Return by key, then by extension, where the files of a shard lie; the first of equals."""
    found: dict[str, dict[str, Member]] = {}
    repeated: set[str] = set()
    try:
        with tarfile.open(shard, "r:") as tar:
            for info in _headers(tar, shard, faults):
                folder, _, name = info.name.removeprefix("./").rpartition("/")
                stem, _, extension = name.partition(".")
                if not info.isreg() or not stem:  # `._a.jpg` and its like are macOS's litter
                    continue
                key = f"{folder}/{stem}" if folder else stem
                members = found.setdefault(key, {})
                if extension.lower() in members:
                    repeated.add(key)
                else:
                    members[extension.lower()] = Member(info.offset_data, info.size)
    except (tarfile.TarError, OSError) as error:
        faults.add("shard is no tar file", shard.name, str(error))
    for key in sorted(repeated):
        faults.add("key stands twice", shard.name, key)
    return found


def _headers(tar: tarfile.TarFile, shard: Path, faults: Faults) -> Iterator[tarfile.TarInfo]:
    """Yield the headers whose data is all there; a cut-off tail is counted once."""
    length = shard.stat().st_size
    try:
        for info in tar:
            if info.offset_data + info.size > length:
                raise tarfile.ReadError("unexpected end of data")
            yield info
        # tarfile takes a damaged header for the end; a real end is a block of zeros.
        with shard.open("rb") as file:
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no header and no end at byte {tar.offset}")
    except (tarfile.ReadError, tarfile.HeaderError) as error:
        faults.add("shard is cut off or damaged", shard.name, str(error))


def _class_number(data: bytes) -> int:
    try:
        return int(data)
    except ValueError:
        raise SampleFault("class is no whole number") from None


def _name(source: str | Path | Sequence[str | Path]) -> str:
    return ", ".join(map(str, source)) if isinstance(source, list | tuple) else str(source)
