"""A large batch in small pieces: its exact gradient, in the memory of one piece.

The features of all pieces are computed and their graphs forgotten, the loss sees the whole batch,
and backward computes each piece again when its turn comes. So a loss whose negatives are the rest
of the batch has the gradient of the large batch, which summing over small batches would not give.

Source: GradCache (Gao et al. 2021, arXiv:2101.06983, section 3), BASIC (Pham et al. 2021,
arXiv:2111.10050, section 4). Here as checkpoints of autograd over whole towers (Chen et al. 2016,
arXiv:1604.06174): what is random about a piece is the same both times, and the scale of fp16 and
the gradients of logit scale and bias come from the one backward pass.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Int64, UInt8
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from training.compute.gather import num_processes
from vlp.encoder import Encoding
from vlp.errors import UserError
from vlp.types import Batch, Pairs

BUCKET_BYTES = 25 * 2**20
"""Gradients that are averaged in one message, as many as in data parallelism's own."""


class Pieces(NamedTuple):
    """How many rows a tower encodes at a time in one process; 0: all of them."""

    image: int = 0
    """Pictures, views included."""
    text: int = 0
    """Captions, views and hard captions included."""

    def are_several(self, batch: Batch) -> bool:
        """Return whether a tower encodes this batch in more than one piece."""
        images, texts = num_rows(batch)
        return 0 < self.image < images or 0 < self.text < texts


def num_rows(batch: Batch) -> tuple[int, int]:
    """Return how many pictures and captions the towers encode of a batch."""
    more = (batch.text_views, batch.hard_tokens)
    images = len(batch.images) * (1 + _num_views(batch.image_views))
    return images, len(batch.tokens) + sum(x[..., 0].numel() for x in more if x is not None)


def encode(encoder: nn.Module, batch: Batch, pieces: Pieces) -> tuple[Pairs, Encoding]:
    """Return the features of a batch, and the encoding that scale and bias come from.

    Several pieces go forward and backward inside ``without_reduction``, and ``average_gradients``
    follows.
    """
    rows = _rows(batch)
    if not pieces.are_several(batch):
        encoding = encoder(rows.images, rows.tokens, rows.seed)
        return _pairs(batch, encoding.image, encoding.text), encoding

    def image_of(images: Tensor, seed: Tensor) -> Tensor:
        return encoder(images, None, seed).image

    def text_of(tokens: Tensor) -> Tensor:
        return encoder(None, tokens).text

    image = _in_pieces(image_of, pieces.image, rows.images, rows.seed)
    text = _in_pieces(text_of, pieces.text, rows.tokens)
    return _pairs(batch, image, text), encoder()


def without_reduction(encoder: nn.Module) -> AbstractContextManager:
    """Keep data parallelism from reducing gradients inside the block, where there is any."""
    # Accelerate's own no_sync does nothing for one process, which it wraps all the same.
    return getattr(encoder, "no_sync", nullcontext)()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Put the mean over processes in the place of every gradient, bucket by bucket.

    Those of sharded parameters are means already: FSDP averages each piece's, as only that leaves
    no process with all of them.
    """
    if num_processes() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    for bucket in _buckets([own for own in gradients if not isinstance(own, DTensor)]):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat, dist.ReduceOp.SUM)
        flat /= num_processes()
        for gradient, mean in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def refuse_batch_norm(norms: Iterable[str], pieces: Pieces, images: int, texts: int) -> None:
    """Raise UserError where batch norm would take statistics of pieces and not of the batch.

    Args:
        norms: Names of the encoder's batch norms that are trained.
        pieces: How many rows a tower encodes at a time.
        images: Pictures of a process in a step.
        texts: Captions of a process in a step.
    """
    towers = (("image", "visual", pieces.image, images), ("text", "text", pieces.text, texts))
    for name, tower, piece, rows in towers:
        if 0 < piece < rows and any(norm.startswith(f"{tower}.") for norm in norms):
            raise UserError(
                f"The {name} tower has batch norm, whose statistics would be those of a piece and "
                f"not of the batch. Write --{name}-piece 0, or choose a tower without batch norm "
                f"such as ViT-B-32."
            )


class _Rows(NamedTuple):
    """All that the towers read of a batch: its pairs' own rows, then views, then hard captions."""

    images: UInt8[Tensor, "images 3 height width"]
    seed: Int64[Tensor, "images"]
    tokens: Int[Tensor, "texts length"]


def _rows(batch: Batch) -> _Rows:
    images, seed, tokens = [batch.images], [batch.seed], [batch.tokens]
    if batch.image_views is not None:
        images.append(batch.image_views.flatten(0, 1))
        seed += [batch.seed + view for view in range(1, 1 + len(batch.image_views))]
    for more in (batch.text_views, batch.hard_tokens):
        if more is not None:
            tokens.append(more.flatten(0, 1))
    return _Rows(_joined(images), _joined(seed), _joined(tokens))


def _num_views(views: Tensor | None) -> int:
    return 0 if views is None else len(views)


def _pairs(batch: Batch, image: Tensor, text: Tensor) -> Pairs:
    """Return what a loss sees of the batch, from the features of its rows."""
    count = len(batch.images)
    pairs = Pairs(image[:count], text[:count], batch.group, batch.seed)
    if batch.image_views is not None:
        pairs = pairs._replace(views=image[count:].unflatten(0, (-1, count)))
    if batch.text_views is not None:
        views = text[count : count * (1 + len(batch.text_views))]
        pairs = pairs._replace(text_views=views.unflatten(0, (-1, count)))
    if batch.hard_tokens is not None:
        start = count * (1 + _num_views(batch.text_views))
        hard = text[start:].unflatten(0, batch.hard_tokens.shape[:2])
        pairs = pairs._replace(hard_text=hard, hard_group=batch.hard_group)
    return pairs


def _in_pieces(
    encode_rows: Callable[..., Tensor], piece: int, *rows: Tensor
) -> Float[Tensor, "rows dim"]:
    """Return the features of rows; the graph of several pieces is made anew, one at a time."""
    if not 0 < piece < len(rows[0]):
        return encode_rows(*rows)
    parts = zip(*(tensor.split(piece) for tensor in rows), strict=True)
    return torch.cat([checkpoint(encode_rows, *part, use_reentrant=False) for part in parts])


def _joined(tensors: list[Tensor]) -> Tensor:
    """Return one tensor of several along the first axis; a single one is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _buckets(gradients: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Yield gradients of one type and device, up to the size of a bucket at a time."""
    kinds: dict[tuple, list[Tensor]] = {}
    for gradient in gradients:
        bucket = kinds.setdefault((gradient.dtype, gradient.device), [])
        bucket.append(gradient)
        if sum(held.nbytes for held in bucket) >= BUCKET_BYTES:
            yield kinds.pop((gradient.dtype, gradient.device))
    yield from kinds.values()
