"""The samples that a report shows, opened: few of them, wherever in the set they lie."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_pipelines.curation.candidates import Candidate, open_candidates
from data_pipelines.curation.decide import Decision
from data_pipelines.curation.scores import ScoredSet
from data_pipelines.curation.survey import Survey
from data_pipelines.faults import SampleFault
from vlp.image import ImageError

SIDE = 160
"""Pixels of the longer side of a picture that is shown."""
LENGTHS = (0, 1, 2, 3, 5, 10, 20, 40)
"""Words of the shortest caption in each group of captions."""


class Example(NamedTuple):
    """A sample as it is shown."""

    shard: str
    key: str
    caption: str
    """Or why there is none."""
    picture: Image.Image | str
    """Or why there is none."""


def open_examples(scored: ScoredSet, survey: Survey) -> dict[int, Example]:
    """Return the samples of the galleries by their places."""
    places = {
        pick.place
        for gallery in survey.galleries
        for picks in gallery.lists().values()
        for pick in picks
    }
    return {
        place: Example(
            scored.sources[shard].name, scored.keys[shard][row], _caption(one), _picture(one)
        )
        for place, shard, row, one in _opened(scored, places)
    }


def kept_by_length(
    scored: ScoredSet, decision: Decision, places: Iterable[int]
) -> list[dict[str, Any]]:
    """Return how many captions of each length are kept, of the samples at some places."""
    seen, kept = Counter[int](), Counter[int]()
    for _, shard, row, one in _opened(scored, places):
        try:
            words = len(one.text.split())
        except SampleFault:
            words = 0
        group = int(np.searchsorted(LENGTHS, words, side="right")) - 1
        seen[group] += 1
        kept[group] += bool(decision.copies[shard][row])
    return [
        {"group": _length(group), "samples": seen[group], "kept": kept[group]}
        for group in sorted(seen)
    ]


def kept_by_text(groups: Mapping[tuple[str, bool], int]) -> list[dict[str, Any]]:
    """Return how many samples of each text, such as a language, are kept; most common first."""
    seen = Counter[str]()
    for (text, _), count in groups.items():
        seen[text] += count
    return [
        {"group": text, "samples": count, "kept": groups.get((text, True), 0)}
        for text, count in sorted(seen.items(), key=lambda item: (-item[1], item[0]))
    ]


def _opened(scored: ScoredSet, places: Iterable[int]) -> Iterator[tuple[int, int, int, Candidate]]:
    """Yield samples by their places, with their shard and row; each shard is opened once."""
    # Of a shard that has any samples its first one, of another the next shard's.
    firsts = np.cumsum([0, *map(len, scored.keys)])[:-1]
    wanted = np.array(sorted(places), np.int64)
    shards = np.searchsorted(firsts, wanted, side="right") - 1
    for shard in np.unique(shards).tolist():
        own = wanted[shards == shard]
        rows = (own - firsts[shard]).tolist()
        candidates = open_candidates(scored.sources[shard], rows)
        for place, row, one in zip(own.tolist(), rows, candidates, strict=True):
            yield place, shard, row, one


def _caption(one: Candidate) -> str:
    try:
        return one.text
    except SampleFault as fault:
        return f"({fault})"


def _picture(one: Candidate) -> Image.Image | str:
    try:
        picture = one.picture.copy()
        picture.thumbnail((SIDE, SIDE))
        return picture
    except (SampleFault, ImageError) as fault:
        return str(fault)
    finally:
        one.forget_picture()


def _length(group: int) -> str:
    if group + 1 == len(LENGTHS):
        return f"{LENGTHS[group]} or more"
    first, last = LENGTHS[group], LENGTHS[group + 1] - 1
    return f"{first}" if first == last else f"{first} to {last}"
