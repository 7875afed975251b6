"""Captions to token ids, and how many captions did not fit."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Tokenizer:
    """Turns captions into ids of a fixed length; longer captions keep their end token.

    Args:
        tokenize: ``(captions, length) -> ids [captions, length]``, cut and padded.
        length: Tokens per caption, start and end tokens included.
        pad: The id of padding.
    """

    def __init__(self, tokenize: Callable[[list[str], int], Tensor], length: int, pad: int) -> None:
        self._tokenize = tokenize
        self.length = length
        self._pad = pad

    def __call__(self, captions: Sequence[str]) -> Int[Tensor, "captions length"]:
        """Return the ids of each caption."""
        return self.with_cuts(captions)[0]

    def with_cuts(
        self, captions: Sequence[str]
    ) -> tuple[Int[Tensor, "captions length"], Bool[Tensor, "captions"]]:
        """Return the ids of each caption, and whether its end was cut off."""
        if not captions:
            return torch.empty(0, self.length, dtype=torch.int64), torch.empty(0, dtype=torch.bool)
        # One token of room more shows which captions do not fit: their last place is taken.
        ids = self._tokenize(list(captions), self.length + 1)
        cut = ids[:, -1] != self._pad
        ids = ids[:, : self.length].clone()  # [captions, length]
        if cut.any():
            long = [caption for caption, is_cut in zip(captions, cut, strict=True) if is_cut]
            ids[cut] = self._tokenize(long, self.length)
        return ids, cut
