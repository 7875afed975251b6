"""Which of several captions fits a picture: items of compositional benchmarks, and their scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from eval.metrics import similarity_of_pairs


@dataclass(frozen=True)
class Item:
    """Some pictures, each with a caption that fits, and captions that fit none."""

    images: tuple[int, ...]
    """Places in the list of pictures. One of them, but in Winoground and our toy set: two."""
    captions: tuple[str, ...]
    """The first fits the first image and so on; those beyond fit none."""
    kind: str
    """What the false captions change, such as ``swap_att``."""


class Margins(NamedTuple):
    """By how much what fits is more similar than the best of what does not, in [-2, 2].

    A row for each picture of each item. A choice is right above 0; at 0 it is a tie, and wrong.
    """

    item: Int64[Tensor, "rows"]
    """Which item a row belongs to."""
    image: Int64[Tensor, "rows"]
    """Which picture it is."""
    caption: Float[Tensor, "rows"]
    """Of the picture: its caption against the item's others."""
    picture: Float[Tensor, "rows"]
    """Of its caption: the picture against the item's others; NaN where there is one picture."""


def captions_of(items: Sequence[Item]) -> list[str]:
    """Return each different caption once, in the order of the items."""
    return list(dict.fromkeys(caption for item in items for caption in item.captions))


def choose(
    images: Float[Tensor, "images dim"], texts: Float[Tensor, "texts dim"], items: Sequence[Item]
) -> Margins:
    """Return the margins of all choices.

    Args:
        images: Unit-length rows of the pictures.
        texts: Unit-length rows of ``captions_of(items)``.
        items: What is chosen.
    """
    place = {caption: row for row, caption in enumerate(captions_of(items))}
    own, false_captions, false_images = [], [], []
    for number, item in enumerate(items):
        captions = [place[caption] for caption in item.captions]
        for i, image in enumerate(item.images):
            row = len(own)
            own.append((number, image, captions[i]))
            # A false caption that reads like the true one is a tie: the margin is exactly 0.
            false_captions += [(row, image, other) for k, other in enumerate(captions) if k != i]
            false_images += [(row, other, captions[i]) for other in item.images if other != image]
    rows = torch.tensor(own)
    similarity = similarity_of_pairs(images, texts, rows[:, 1:])  # [rows]
    hardest = [
        _hardest(images, texts, torch.tensor(false, dtype=torch.int64).reshape(-1, 3), len(own))
        for false in (false_captions, false_images)
    ]
    margins = [torch.where(of.isfinite(), similarity - of, torch.nan) for of in hardest]
    return Margins(rows[:, 0], rows[:, 1], *margins)


def of_items(rows: Tensor, item: Int64[Tensor, "rows"]) -> Tensor:
    """Return for each item whether all of its rows are true."""
    right = torch.ones(int(item.max()) + 1, dtype=torch.int64)
    return right.scatter_reduce(0, item, rows.long(), "amin").bool()


def _hardest(images: Tensor, texts: Tensor, false: Tensor, num_rows: int) -> Tensor:
    """Return the highest similarity of each row's false (row, image, text), -inf without one."""
    similarity = similarity_of_pairs(images, texts, false[:, 1:])
    best = similarity.new_full((num_rows,), -torch.inf)
    return best.scatter_reduce(0, false[:, 0], similarity, "amax")
