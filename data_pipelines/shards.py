"""Read and write shards: WebDataset tars of ``key.jpg``, ``key.txt`` and ``key.json``.

A shard is indexed once by its headers, so any sample is one seek away; members of a sample may
stand in any order and need not be neighbours.
"""

import io
import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Bool, Int64

from data_pipelines.faults import Faults, SampleFault
from data_pipelines.shard_counts import count_samples
from data_pipelines.sources import Source, find_shards
from data_pipelines.tar_index import CAPTION_EXTENSIONS, Entry, open_index, open_shard
from vlp.errors import UserError
from vlp.sample import Sample

SIGNATURES = {
    b"\x89PNG": "png",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
}


@dataclass
class ShardSet:
    """The usable samples of some shards, in shard order and then in the order of the tar."""

    shards: list[Path]
    counts: Int64[np.ndarray, "shards"]
    """Samples in each shard, as counted or as stated beside it."""
    is_stated: Bool[np.ndarray, "shards"]
    faults: Faults = field(default_factory=Faults)
    """What was found wrong while the headers were read."""

    def __len__(self) -> int:
        return len(self.entries) if "entries" in vars(self) else int(self.counts.sum())

    @cached_property
    def entries(self) -> list[Entry]:
        """Every sample's place, from the headers; for sets that fit into memory."""
        found = []
        for shard, is_stated in zip(self.shards, self.is_stated, strict=True):
            index = open_index(shard)
            found += index
            if is_stated:  # its headers are read here for the first time
                self.faults.merge(index.faults.as_dict())
        return found

    def __iter__(self) -> Iterator[Sample]:
        """Yield every sample; one that cannot be read is counted under its reason."""
        for entry in self.entries:
            try:
                yield read(entry)
            except SampleFault as fault:
                self.faults.add(str(fault), entry.shard.name, entry.key)


def open_shards(source: Source) -> ShardSet:
    """Count the samples of the shards that a source names (see ``find_shards``).

    Raises:
        UserError: There is no shard, a shard is missing, or no sample has an image and a caption.
    """
    shards = find_shards(source)
    counts, is_stated, faults = count_samples(shards)
    if not counts.sum():
        reasons = f" ({faults.summary()})" if faults else ""
        raise UserError(
            f"{_name(source)} holds no sample with an image and a caption{reasons}. A sample is "
            f"KEY.jpg (or png, webp) and KEY.txt in a tar; `vlp pack` makes such shards."
        )
    return ShardSet(shards, counts, is_stated, faults)


def join(sets: Sequence[ShardSet]) -> ShardSet:
    """Return several sets as one.

    Raises:
        UserError: A shard is in two of them.
    """
    shards = [shard for one in sets for shard in one.shards]
    written = Counter(map(os.path.abspath, shards))  # ./a and a are one
    twice = next((shard for shard, count in written.items() if count > 1), None)
    if twice:
        raise UserError(
            f"{twice} is named twice. To read samples more often, write --data.weights, or copies "
            f"into a keep-list."
        )
    faults = Faults()
    for one in sets:
        faults.merge(one.faults.as_dict())
    counts = np.concatenate([one.counts for one in sets])
    return ShardSet(shards, counts, np.concatenate([one.is_stated for one in sets]), faults)


def name_shards(source: Source) -> ShardSet:
    """Return the shards that a source names, uncounted, for reading with replacement."""
    shards = find_shards(source)
    return ShardSet(shards, np.zeros(len(shards), np.int64), np.ones(len(shards), bool))


def read(
    entry: Entry,
    *,
    with_metadata: bool = True,
    needs_caption: bool = True,
    needs_image: bool = True,
) -> Sample:
    """Return one sample: its image still encoded, its caption and its metadata.

    The caption is ``.txt``, or ``caption`` of ``.json`` (img2dataset). A sample with a class
    (``.cls``) or several (``.npy`` of CLIP_benchmark, a truth value for each) may have none.

    Args:
        entry: Where the sample lies.
        with_metadata: Read ``.json`` and ``.cls`` although there is a ``.txt``.
        needs_caption: A sample without a caption is a fault.
        needs_image: Read the image; else it is of no bytes.

    Raises:
        SampleFault: The shard cannot be read, the caption is missing or no UTF-8, the metadata is
            no JSON object, or the class is no number.
    """
    extension = entry.extension()
    assert extension is not None, "an entry without an image is never indexed"
    has_text = "txt" in entry.members and not with_metadata
    images = (extension,) if needs_image else ()
    found = read_members(entry, (*images, "txt") if has_text else (*images, *CAPTION_EXTENSIONS))
    text, metadata = text_of(found)
    if needs_caption and not text and "cls" not in metadata:
        raise SampleFault("caption is empty" if "txt" in found else "no caption")
    return Sample(entry.key, found[extension] if needs_image else b"", text, metadata)


def text_of(members: dict[str, bytes]) -> tuple[str, dict[str, Any]]:
    """Return the caption, "" where there is none, and the metadata of a sample's files.

    Raises:
        SampleFault: They are no UTF-8, no JSON object, or the class is no number.
    """
    try:
        metadata = json.loads(members.get("json", b"{}"))
        if not isinstance(metadata, dict):
            raise SampleFault("metadata is no JSON object")
        if "npy" in members:
            metadata |= _numbers(members["npy"], is_label="cls" not in members)
        if "cls" in members:
            metadata["cls"] = _class_number(members["cls"])
        text = members["txt"].decode() if "txt" in members else _caption_of(metadata)
    except UnicodeDecodeError:
        raise SampleFault("caption or metadata is no UTF-8") from None
    except (ValueError, RecursionError):
        raise SampleFault("metadata is no JSON object") from None
    return text.strip(), metadata


def _caption_of(metadata: dict[str, Any]) -> str:
    """Return the caption of ``.json``; of a list of captions, each is a line as in ``.txt``."""
    caption = metadata.get("caption")
    captions = caption if isinstance(caption, list) else [caption]
    return "\n".join(" ".join(text.split()) for text in captions if isinstance(text, str))


def read_members(entry: Entry, extensions: Sequence[str], most: int = 1 << 62) -> dict[str, bytes]:
    """Return the bytes of those of a sample's files that it has, of each at most so many.

    Raises:
        SampleFault: The disk cannot give them.
    """
    try:
        with open_shard(entry.shard) as file:
            return {
                extension: os.pread(file.fileno(), min(member.size, most), member.offset)
                for extension in extensions
                if (member := entry.members.get(extension))
            }
    except OSError as error:
        raise SampleFault(f"shard cannot be read: {error.strerror}") from None


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
    members = (_members(sample, _free_key(sample.key, keys)) for sample in samples)
    count = 0
    while first := next(members, None):
        path = folder / f"{count // samples_per_shard:06d}.tar"
        with path.open("wb") as file:
            count += write_shard(chain([first], islice(members, samples_per_shard - 1)), file)
    return count, -(-count // samples_per_shard)


def write_shard(samples: Iterable[dict[str, Any]], file: BinaryIO) -> int:
    """Write one tar and return the number of samples in it.

    Its bytes follow from the samples alone: times are 0.

    Args:
        samples: For each its files by extension, as bytes, and its key as ``__key__``.
        file: The tar file.
    """
    from webdataset.writer import TarWriter  # loads torch, which readers need not wait for

    count = 0
    with TarWriter(file, encoder=False, mtime=0) as writer:
        for members in samples:
            writer.write(members)
            count += 1
    return count


def copied_members(entry: Entry, key: str) -> dict[str, Any]:
    """Return all files of a sample as they are, for ``write_shard``.

    Raises:
        UserError: The disk cannot give them any more.
    """
    try:
        return {"__key__": key, **read_members(entry, tuple(entry.members))}
    except SampleFault as fault:
        raise UserError(f"{entry.shard}, {entry.key}: the {fault}.") from None


def image_extension(data: bytes) -> str:
    """Return ``png``, ``webp``, ``gif``, ``bmp`` or ``tif`` by the first bytes, else ``jpg``."""
    if data[8:12] == b"WEBP":
        return "webp"
    return next((name for start, name in SIGNATURES.items() if data.startswith(start)), "jpg")


def safe_key(key: str) -> str:
    """Return a key that a reader finds again: without dots, and inside the folder."""
    # No name may lead out of the folder that someone unpacks a shard into.
    folder, _, name = posixpath.normpath("/" + key).strip("/").rpartition("/")
    name = name.replace(".", "_") or "_"
    return f"{folder}/{name}" if folder else name


def _free_key(key: str, taken: set[str]) -> str:
    """Return a safe key that no sample has yet, and take it."""
    wanted = safe_key(key)
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


def _class_number(data: bytes) -> int:
    try:
        return int(data)
    except ValueError:
        raise SampleFault("class is no whole number") from None


def _numbers(data: bytes, *, is_label: bool) -> dict[str, Any]:
    """Return what CLIP_benchmark keeps in an array.

    It is a truth value for each class, of which ``cls`` has those that are true; or, beside a
    label, facts such as WILDS' region, ``npy_0``, ``npy_1`` and so on.
    """
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False).reshape(-1)
    except (ValueError, OSError, EOFError):
        raise SampleFault("classes are no array") from None
    if is_label:
        return {"cls": array.nonzero()[0].tolist()}
    return {f"npy_{place}": value for place, value in enumerate(array.tolist())}


def _name(source: str | Path | Sequence[str | Path]) -> str:
    return ", ".join(map(str, source)) if isinstance(source, list | tuple) else str(source)
