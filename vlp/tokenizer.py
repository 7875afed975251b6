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
    """

    def __init__(self, tokenize: Callable[[list[str], int], Tensor], length: int) -> None:
        self._tokenize = tokenize
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
        ids = self._tokenize(list(captions), self.length)  # [captions, length]
        # With room for one token more, a caption that was cut goes on where its end token stood.
        full = (ids[:, -1] != 0).nonzero().squeeze(1).tolist()
        cut = torch.zeros(len(captions), dtype=torch.bool)
        if full:
            roomy = self._tokenize([captions[int(i)] for i in full], self.length + 1)
            cut[full] = (roomy[:, : self.length] != ids[full]).any(dim=1)
        return ids, cut
