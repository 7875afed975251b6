"""Captions to token ids, and how many captions did not fit."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Tokenizer:
    """Turns captions into ids of a fixed length; longer captions keep their end token.

    Args:
        encode: ``(captions, length) -> ids [captions, length], cut [captions]``: ``Bpe``, or
            ``tokenize_twice`` around any other tokenizer.
        length: Tokens per caption, start and end tokens included.
    """

    def __init__(
        self, encode: Callable[[list[str], int], tuple[Tensor, Tensor]], length: int
    ) -> None:
        self._encode = encode
        self.length = length

    def __call__(self, captions: Sequence[str]) -> Int[Tensor, "captions length"]:
        """Return the ids of each caption."""
        return self.with_cuts(captions)[0]

    def with_cuts(
        self, captions: Sequence[str]
    ) -> tuple[Int[Tensor, "captions length"], Bool[Tensor, "captions"]]:
        """Return the ids of each caption, and whether its end was cut off."""
        if not captions:
            return torch.empty(0, self.length, dtype=torch.int64), torch.empty(0, dtype=torch.bool)
        return self._encode(list(captions), self.length)


def tokenize_twice(
    tokenize: Callable[[list[str], int], Tensor], captions: Sequence[str], length: int
) -> tuple[Int[Tensor, "captions length"], Bool[Tensor, "captions"]]:
    """Return the ids of each caption, and whether its end was cut off.

    For a tokenizer that gives ids only: captions that fill their row are tokenised once more.

    Args:
        tokenize: ``(captions, length) -> ids [captions, length]``, cut and padded.
        captions: At least one.
        length: Tokens per caption, start and end tokens included.
    """
    ids = tokenize(list(captions), length)  # [captions, length]
    # With room for one token more, a caption that was cut goes on where its end token stood.
    full = (ids[:, -1] != 0).nonzero().squeeze(1).tolist()
    cut = torch.zeros(len(captions), dtype=torch.bool)
    if full:
        roomy = tokenize([captions[int(i)] for i in full], length + 1)
        cut[full] = (roomy[:, :length] != ids[full]).any(dim=1)
    return ids, cut
