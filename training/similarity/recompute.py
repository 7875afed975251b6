"""Blocks of similarities whose intermediate values are computed again in backward.

For terms that no log-sum-exp over an anchor's negatives gives. Where every similarity of an anchor
is needed at once, its rows are worked on some at a time.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from training.similarity.tiles import tile_elements


def recomputed(term: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Return ``term(*tensors)`` in full precision, keeping nothing but its arguments."""

    def exactly(*tensors: Tensor) -> Tensor:
        with torch.autocast(tensors[0].device.type, enabled=False):
            return term(*tensors)

    result = checkpoint(exactly, *tensors, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(result, Tensor)
    return result


def in_row_chunks(term: Callable[..., Tensor], by_row: Sequence[Tensor], width: int) -> Tensor:
    """Return a term of every row, from chunks of rows by ``width`` that are as large as a tile."""
    height = max(1, tile_elements(by_row[0]) // width)
    chunks = zip(*(tensor.split(height) for tensor in by_row), strict=True)
    return torch.cat([recomputed(term, *chunk) for chunk in chunks])
