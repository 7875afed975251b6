"""Captions that name something of a list of WordNet's meanings, such as ImageNet's classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.files import file_hash, read_lines, read_once
from data_pipelines.curation.rules import BoundedFilter
from data_pipelines.curation.wordnet import PARTS, read_wordnet
from vlp.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SynsetWords(BoundedFilter):
    """Number of words of the caption whose first meaning is listed; at least 1.

    DataComp's text-based filter (Gadre et al. 2023, section 3.2): words are split at white space,
    and the meanings are ImageNet-21k's.
    """

    min: float | None = 1
    synsets: str
    """Text file with a wnid, such as n02084071, at the beginning of each line."""
    words: str
    """Folder of WordNet 3.0's files, such as /usr/share/wordnet of Debian's wordnet-base; or a text
    file with a word and the wnid of its first meaning on each line."""

    def identity(self) -> str:
        """Return the hashes of both lists."""
        read = Path(self.words)
        names = [file for name in PARTS for file in (f"index.{name}", f"{name}.exc")]
        files = [read / name for name in names] if read.is_dir() else [read]
        return " ".join(map(file_hash, [self.synsets, *map(str, files)]))

    def score(self, candidates: Sequence[Candidate]) -> list[int]:
        """Return the number of words of each caption whose first meaning is listed."""
        listed, first_meaning = _listed(self.synsets), _first_meanings(self.words)
        return [
            sum(first_meaning(word) in listed for word in one.text.split()) for one in candidates
        ]


@read_once
def _listed(path: str) -> frozenset[str]:
    wnids = frozenset(line.split()[0] for line in read_lines(path))
    wrong = next((one for one in wnids if one[0] not in "nvar" or not one[1:].isdigit()), None)
    if wrong:
        raise UserError(
            f"{wrong!r} in {path} is no wnid. Write one such as n02084071 on each line."
        )
    return wnids


@read_once
def _first_meanings(path: str) -> Callable[[str], str | None]:
    if Path(path).is_dir():
        return lru_cache(1 << 20)(read_wordnet(path).wnid)
    told: dict[str, str] = {}
    for fields in map(str.split, read_lines(path)):
        told.setdefault(fields[0].lower(), fields[-1])
    return lambda word: told.get(word.lower())
