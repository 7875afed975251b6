"""Samples as filters look at them: each part is read or made once, when it is first asked for.

A caption costs a read of some bytes, a picture's size its header, a decoded picture milliseconds;
so a filter pays for what it looks at, and what two filters look at is made once.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from data_pipelines.curation.table_rows import open_rows
from data_pipelines.curation.tables import table_keys
from data_pipelines.faults import SampleFault
from data_pipelines.shards import read_members, text_of
from data_pipelines.tar_index import CAPTION_EXTENSIONS, Entry, open_index
from vlp.image import HEAD, ImageError, decode, size
from vlp.sample import MARK, Sample


@runtime_checkable
class Record(Protocol):
    """Where the parts of a sample come from."""

    @property
    def key(self) -> str:
        """The name of the sample."""
        ...

    def told(self) -> tuple[str, Mapping[str, Any]]:
        """Return the caption and the metadata."""
        ...

    def image(self) -> bytes:
        """Return the encoded picture."""
        ...

    def size(self) -> tuple[int, int]:
        """Return width and height in pixels, as the header has them."""
        ...

    def num_bytes(self) -> int:
        """Return the size of the encoded picture."""
        ...


class Candidate:
    """A sample that filters decide about.

    Every part raises SampleFault or ImageError where the sample lacks it or it is damaged.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.pixels: dict[str, Any] = {}
        """By model, the picture as its image tower takes it; see ``features.py``."""
        self.features: dict[tuple[str, str], Any] = {}

    @classmethod
    def of(cls, sample: Sample) -> "Candidate":
        """Return a sample that is in memory as a candidate."""
        return cls(InMemory(sample))

    @property
    def key(self) -> str:
        """The name of the sample."""
        return self.record.key

    @property
    def text(self) -> str:
        """The caption; only a sample with a class (``cls``) may have an empty one."""
        text, metadata = self._told
        if not text and "cls" not in metadata:
            raise SampleFault("caption is empty")
        return text

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What else is said of the sample: ``.json`` and ``.cls``, or the columns of a table."""
        return self._told[1]

    @cached_property
    def image(self) -> bytes:
        """The encoded picture."""
        return self.record.image()

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the header."""
        return self.record.size()

    @property
    def num_bytes(self) -> int:
        """Size of the encoded picture."""
        return self.record.num_bytes()

    @cached_property
    def picture(self) -> Image.Image:
        """The first frame as upright RGB."""
        return decode(self.image)

    def forget_picture(self) -> None:
        """Give back the memory of the decoded and the encoded picture."""
        self.__dict__.pop("picture", None)
        self.__dict__.pop("image", None)

    @cached_property
    def id(self) -> int:
        """64 bits of the key: what is drawn by chance for a sample follows from it and a seed."""
        return hash64(self.key)

    @cached_property
    def _told(self) -> tuple[str, Mapping[str, Any]]:
        return self.record.told()


class InMemory:
    """A sample in memory."""

    def __init__(self, sample: Sample) -> None:
        self.key, self._sample = sample.key, sample

    def told(self) -> tuple[str, Mapping[str, Any]]:
        """Return the caption and the metadata."""
        return self._sample.text, _unmarked(self._sample.metadata)

    def image(self) -> bytes:
        """Return the encoded picture."""
        return self._sample.image

    def size(self) -> tuple[int, int]:
        """Return width and height, from the header."""
        return size(self._sample.image)

    def num_bytes(self) -> int:
        """Return the size of the encoded picture."""
        return len(self._sample.image)


class InShard:
    """A sample in a tar file, of which only what is asked for is read."""

    def __init__(self, entry: Entry) -> None:
        self.key, self._entry = entry.key, entry

    def told(self) -> tuple[str, Mapping[str, Any]]:
        """Return the caption and the metadata."""
        text, metadata = text_of(read_members(self._entry, CAPTION_EXTENSIONS))
        return text, _unmarked(metadata)

    def image(self) -> bytes:
        """Return the encoded picture."""
        return next(iter(read_members(self._entry, self._extension).values()))

    def size(self) -> tuple[int, int]:
        """Return width and height, from the first bytes where they do."""
        try:
            return size(next(iter(read_members(self._entry, self._extension, HEAD).values())))
        except ImageError:
            return size(self.image())

    def num_bytes(self) -> int:
        """Return the size of the encoded picture."""
        return self._entry.members[self._extension[0]].size

    @property
    def _extension(self) -> tuple[str, ...]:
        return (self._entry.extension() or "",)


def open_candidates(path: Path, wanted: Sequence[int]) -> Iterator[Candidate]:
    """Yield the candidates of a shard or a table at these rows, ascending.

    Raises:
        UserError: The file cannot be read.
    """
    if path.suffix == ".parquet":
        for rows in open_rows(path, wanted):
            yield from map(Candidate, rows.records())
    else:
        index = open_index(path)
        yield from (Candidate(InShard(index[place])) for place in wanted)


def keys_of(path: Path) -> list[str]:
    """Return the key of every row of a shard or a table.

    Raises:
        UserError: The file cannot be read.
    """
    if path.suffix != ".parquet":
        return open_index(path).keys
    return table_keys(path)


def hash64(text: str) -> int:
    """Return 64 bits that follow from a text."""
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _unmarked(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata without the toy world's mark, which would tell a filter the answer."""
    return {name: value for name, value in metadata.items() if name != MARK}
