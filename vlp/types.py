"""The things that flow: samples in shards, batches of tensors, pairs of features, hits."""

from typing import Any, NamedTuple

from jaxtyping import Float, Int, Int64, UInt8
from torch import Tensor

from vlp.sample import Sample as Sample  # one of them

PADDING = -2
"""Group of a hard caption that is none, in a row that has fewer than others."""


class Batch(NamedTuple):
    """Samples as an encoder reads them. Pixels stay uint8 until they are on the device."""

    images: UInt8[Tensor, "batch 3 height width"]
    tokens: Int[Tensor, "batch length"]
    keys: list[str]
    group: Int64[Tensor, "batch"]
    """Pairs of equal group match each other."""
    seed: Int64[Tensor, "batch"]
    """What is random about a pair follows from this number alone."""
    image_views: UInt8[Tensor, "views batch 3 height width"] | None = None
    """More views of each picture, where asked for."""
    text_views: Int[Tensor, "views batch length"] | None = None
    """More captions of each pair, where asked for."""
    hard_tokens: Int[Tensor, "batch hard length"] | None = None
    """Captions that nearly fit each picture, where asked for."""
    hard_group: Int64[Tensor, "batch hard"] | None = None
    """The group that each hard caption would be of; -1: of none; PADDING: there is no caption."""
    teacher_images: UInt8[Tensor, "batch 3 high wide"] | None = None
    """The same views at the size of the run's teacher, where it is another."""
    teacher_tokens: Int[Tensor, "batch long"] | None = None
    """The same captions by the teacher's tokenizer."""
    teacher_features: Float[Tensor, "batch 2 dim"] | None = None
    """Image and text features of a teacher on disk, as they are stored."""


class Past(NamedTuple):
    """Features of earlier steps, without gradients: the same on every process."""

    image: Float[Tensor, "past dim"]
    text: Float[Tensor, "past dim"]
    group: Int64[Tensor, "past"]
    ceiling: float | None = None
    """Cosine above which one is a near-duplicate of its anchor, and left out."""


class TeacherFeatures(NamedTuple):
    """What a frozen model says of a batch: unit-length rows, without gradients."""

    image: Float[Tensor, "batch wide"]
    text: Float[Tensor, "batch wide"]
    scale: float | None = None
    """The logit scale that it was trained to, where it is known."""


class Pairs(NamedTuple):
    """What a loss sees of a batch: unit-length rows."""

    image: Float[Tensor, "batch dim"]
    text: Float[Tensor, "batch dim"]
    group: Int64[Tensor, "batch"]
    seed: Int64[Tensor, "batch"]
    views: Float[Tensor, "views batch dim"] | None = None
    """More image features of each pair."""
    hard_text: Float[Tensor, "batch hard dim"] | None = None
    """Captions that nearly fit: extra columns of image-to-text, never anchors."""
    hard_group: Int64[Tensor, "batch hard"] | None = None
    """The group that each hard caption would be of, as it may be the caption of another pair; -1
    for none. It is no negative of a pair of that group; one of PADDING is none of any."""
    teacher: TeacherFeatures | None = None
    """A frozen model's features of the same images and texts."""
    past: Past | None = None
    """Pairs of earlier steps, as more negatives."""
    text_views: Float[Tensor, "text_views batch dim"] | None = None
    """Features of more captions of each pair."""


class Hit(NamedTuple):
    """One search result."""

    key: str
    score: float
    """Cosine similarity to the query, in [-1, 1]."""
    metadata: dict[str, Any]
    percentile: float | None = None
    """Share of the index that scores below it, of this query, in [0, 100]; where it was asked."""
    folded: tuple[str, ...] = ()
    """Keys of near-duplicates that this hit stands for."""
