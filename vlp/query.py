"""What a person asks of an index, and the hits: pure, and safe to call from several threads."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from vlp.encode import encode_images, encode_texts
from vlp.encoder import DualEncoder
from vlp.errors import UserError
from vlp.image import ImageError, decode
from vlp.index import Index
from vlp.types import Hit

NEAR_DUPLICATE = 0.94
"""Cosine from which clip-retrieval, too, takes two pictures for the same."""
GROWTH = 4
"""How many times more hits are fetched where too few were left."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is looked for: a weighted sum of texts, images and samples of the index.

    Jia et al. (2021, ALIGN, section 6.3) add the features of an image and a text; a negative weight
    leads away from what it is of.
    """

    texts: tuple[tuple[str, float], ...] = ()
    """Texts, each with its weight."""
    images: tuple[tuple[bytes, float], ...] = ()
    """Encoded pictures, each with its weight."""
    keys: tuple[tuple[str, float], ...] = ()
    """Samples of the index, each with its weight: more like them, and not they themselves."""
    where: tuple[str, ...] = ()
    """Conditions on the metadata, such as ``width>=512``; all must be met."""
    k: int = 5
    """Hits, after all that is below."""
    offset: int = 0
    """Hits that are left out at the start: those of the pages before."""
    min_percentile: float | None = None
    """Of the background that a hit must score above, from 0 to 100; None: any."""
    fold: float | None = None
    """Cosine between pictures from which the later one is folded into the earlier; None: never."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"k is {self.k}. Ask for 1 hit or more.")
        if self.offset < 0:
            raise UserError(f"The offset is {self.offset}. Begin at 0 or later.")
        parts = [weight for _, weight in (*self.texts, *self.images, *self.keys)]
        if not parts:
            raise UserError("The query is empty. Give a text, an image or a key.")
        if any(not text.strip() for text, _ in self.texts):
            raise UserError("The query is empty. Write a text, or the path of an image.")
        if not any(parts) or not np.isfinite(parts).all():
            raise UserError(f"The weights are {parts}. One at least must be other than 0.")
        if self.min_percentile is not None and not 0 <= self.min_percentile <= 100:
            raise UserError(f"The percentile is {self.min_percentile}. Give 0 to 100.")
        if self.fold is not None and not -1 <= self.fold <= 1:
            raise UserError(f"Pictures are folded from a cosine of {self.fold}. Give -1 to 1.")


def find(index: Index, encoder: DualEncoder, query: Query) -> list[Hit]:
    """Return the hits of a query, best first.

    Raises:
        UserError: A key is not in the index, a picture cannot be read, or a condition is wrong.
    """
    texts = encode_texts(encoder, [text for text, _ in query.texts]).numpy()
    images = encode_images(encoder, _decoded(query)).numpy()
    return find_encoded(index, combine(index, query, texts, images), query)


def combine(
    index: Index,
    query: Query,
    texts: Float[np.ndarray, "texts dim"],
    images: Float[np.ndarray, "images dim"],
) -> Float[np.ndarray, "dim"]:
    """Return the unit-length sum of a query's parts, each at unit length times its weight.

    Args:
        index: What holds the query's keys.
        query: Its weights count, and its keys.
        texts: Features of its texts, in their order.
        images: Features of its images, in their order.

    Raises:
        UserError: A key is not in the index, or the parts cancel out.
    """
    keys = [index.vectors(np.array(index.rows_of(key)[:1])) for key, _ in query.keys]
    rows = np.concatenate([texts, images, *keys])
    weights = np.array([weight for _, weight in (*query.texts, *query.images, *query.keys)])
    total = weights @ rows  # [parts] @ [parts, dim]
    length = np.linalg.norm(total)
    if length < 1e-6:
        raise UserError("The parts of the query cancel out. Give other weights.")
    return (total / length).astype(np.float32)


def find_encoded(index: Index, vector: Float[np.ndarray, "dim"], query: Query) -> list[Hit]:
    """Return the hits of a query whose vector is known.

    More are fetched than are asked for until, near-duplicates folded, enough are left or there
    are no more.

    Args:
        index: What is searched.
        vector: What ``combine`` gave, unit-length.
        query: All but its texts and images count.
    """
    allowed = _allowed(index, query)
    available = int(allowed.sum()) if allowed is not None else len(index)
    wanted = query.offset + query.k
    background = np.sort(index.background @ vector)
    fetched = min(available, wanted if query.fold is None else 2 * wanted)
    while fetched:
        scores, rows = index.neighbours(vector[None], fetched, allowed)
        percentiles = 100 * np.searchsorted(background, scores[0]) / len(background)
        is_left = rows[0] >= 0
        if query.min_percentile is not None:
            is_left &= percentiles >= query.min_percentile
        found = [int(place) for place in np.flatnonzero(is_left)]
        groups = _fold(index.vectors(rows[0][found]), query.fold, wanted)
        if len(groups) >= wanted or fetched == available or not is_left.all():
            break
        fetched = min(available, fetched * GROWTH)
    else:
        return []
    shown = [[found[place] for place in group] for group in groups[query.offset : wanted]]
    places = [place for group in shown for place in group]
    hits = index.hits_of(rows[0][places].tolist(), scores[0][places].tolist())
    by_place = dict(zip(places, hits, strict=True))
    return [_folded([by_place[place] for place in group], percentiles[group[0]]) for group in shown]


def _decoded(query: Query) -> list[Image.Image]:
    try:
        return [decode(image) for image, _ in query.images]
    except ImageError as error:
        raise UserError(
            f"Cannot read a picture of the query: the {error}. Give a whole JPEG, PNG or WebP."
        ) from None


def _allowed(index: Index, query: Query) -> Bool[np.ndarray, "rows"] | None:
    if not query.where and not query.keys:
        return None
    allowed = index.matching(query.where)
    for key, _ in query.keys:
        allowed[index.rows_of(key)] = False
    return allowed


def _fold(rows: Float[np.ndarray, "hits dim"], least: float | None, most: int) -> list[list[int]]:
    """Return so many groups of hits at most, in the order of their first, which others are like."""
    if least is None:
        return [[place] for place in range(min(most, len(rows)))]
    groups: list[list[int]] = []
    firsts = np.empty((min(most, len(rows)), rows.shape[1]), np.float32)
    for place, row in enumerate(rows):
        near = np.flatnonzero(firsts[: len(groups)] @ row >= least)  # [groups, dim] @ [dim]
        if len(near):
            groups[near[0]].append(place)
        elif len(groups) < most:
            firsts[len(groups)] = row
            groups.append([place])
    return groups


def _folded(hits: Sequence[Hit], percentile: float) -> Hit:
    """Return the first of hits that look alike, which stands for the others."""
    keys = tuple(hit.key for hit in hits[1:])
    return hits[0]._replace(percentile=float(percentile), folded=keys)
