"""What a loss sees of a batch besides its value: accuracy, similarities, duplicates.

    with watching() as seen:
        loss(local, world, rows, scale, bias)
    figures = seen.figures()

The tiled losses note it while they walk their tiles; nothing is noted where nobody watches.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from training.similarity.tiles import Tiles
from vlp.types import Pairs


class Extremes:
    """What one direction sees: similarities of each anchor to its own pair and its negatives."""

    def __init__(self, anchors: Tensor) -> None:
        count = len(anchors)
        self.own, self.total = torch.zeros(2, count, device=anchors.device)
        self.largest = self.own - torch.inf
        self.smallest = self.own + torch.inf

    def note(self, hidden: Tensor, places: slice, dim: int) -> None:
        """Note a tile, -inf where no negative is, reduced along dim."""
        is_hidden = hidden == -torch.inf
        lowest = hidden.masked_fill(is_hidden, torch.inf).amin(dim).to(self.own.dtype)
        highest = hidden.amax(dim).to(self.own.dtype)
        self.largest[places] = torch.maximum(self.largest[places], highest)
        self.smallest[places] = torch.minimum(self.smallest[places], lowest)
        self.total[places] += hidden.masked_fill(is_hidden, 0).sum(dim)


def note_tile(
    extremes: Sequence[Extremes | None], tiles: Tiles, logits: Tensor, rows: slice, columns: slice
) -> None:
    """Note a tile for its rows and, with two extremes, its columns; None is nobody."""
    if not any(extremes):
        return
    hidden = logits.clone()
    tiles.hide(hidden, rows, columns)
    own = tiles.own(logits, rows, columns)
    for dim, (places, watched) in enumerate(zip((rows, columns), extremes, strict=False)):
        if watched is None:
            continue
        watched.note(hidden, places, 1 - dim)
        if own is not None:
            watched.own[own[1]] = own[0].to(watched.own.dtype)


@dataclass
class Seen:
    """What was noted of a batch: of the widest features, where a loss looks at several prefixes."""

    width: int = 0
    values: dict[str, Tensor] = field(default_factory=dict)

    def figures(self) -> dict[str, Tensor]:
        """Return by name what was seen of this process's pairs among everyone's.

        The mean over processes is the figure of the global batch, but for those called ``min`` and
        ``max``, whose minimum and maximum are.

        - ``accuracy/image_to_text`` and back: share of anchors whose own pair is more similar than
          every non-match, in [0, 1]; ties count against it. Higher is better.
        - ``match/...`` and ``non_match/...``: cosines to the own pair and to pairs of other groups.
        - ``above_match``: share of anchors of both directions with a non-match above their match.
        - ``duplicates``: pairs of the global batch whose group another of its pairs has.

        A batch of one group has no non-matches: their figures are then not finite. Nothing was
        seen where no loss that walks tiles was run.
        """
        return self.values


_watcher: Seen | None = None


@contextmanager
def watching() -> Iterator[Seen]:
    """Let the losses that are run inside note what they see."""
    global _watcher
    before, _watcher = _watcher, Seen()
    try:
        yield _watcher
    finally:
        _watcher = before


def extremes_of(local: Pairs) -> tuple[Extremes | None, Extremes | None]:
    """Return what images and texts are noted in, if anybody watches."""
    return (None, None) if _watcher is None else (Extremes(local.image), Extremes(local.text))


def note_batch(
    extremes: tuple[Extremes | None, Extremes | None], scale: float, world: Pairs
) -> None:
    """Take down what both directions have noted, as scaled similarities, of a batch."""
    width, (image, text) = world.image.shape[1], extremes
    if _watcher is None or image is None or text is None or width <= _watcher.width:
        return
    own, largest = image.own, torch.cat([image.largest, text.largest])
    smallest = torch.cat([image.smallest, text.smallest])
    sizes, num_pairs = world.group.unique(return_counts=True)[1], len(world.group)
    # Of all ordered pairs, and not of those this process has: so processes average to the whole.
    non_matches = (num_pairs**2 - sizes.square().sum()) * len(own) / num_pairs
    cosines = {
        "match/mean": own.mean(),
        "match/min": own.amin(),
        "match/max": own.amax(),
        "non_match/mean": (image.total + text.total).sum() / (2 * non_matches),
        "non_match/min": smallest.amin(),
        "non_match/max": largest.amax(),
    }
    _watcher.width = width
    _watcher.values = {
        "accuracy/image_to_text": (own > image.largest).float().mean(),
        "accuracy/text_to_image": (own > text.largest).float().mean(),
        "above_match": (largest > own.repeat(2)).float().mean(),
        "duplicates": sizes[sizes > 1].sum().float(),
    } | {name: (value / scale).float() for name, value in cosines.items()}
