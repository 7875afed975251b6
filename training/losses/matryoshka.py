"""Any loss at nested prefixes of the features, so that each prefix is good on its own."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from training.loss import least_dim, needs, refuse_dim, takes
from training.similarity.tiles import in_full_precision
from vlp.errors import UserError
from vlp.spec import build
from vlp.types import Pairs


@dataclass(frozen=True, kw_only=True)
class Matryoshka:
    """The mean of a loss over prefixes of the features, each made unit-length; lower is better.

    loss = mean over d in dims and the full width of L( x[:d] / |x[:d]|, y[:d] / |y[:d]| )

    All prefixes share one scale and bias. Equal to its loss where ``dims`` is the full width only.
    Features that cannot be told apart give the value of the loss. The paper adds up where this
    takes the mean, so that a learning rate may stay as it is.

    Source: Matryoshka representation learning (Kusupati et al. 2022, arXiv:2205.13147, equation 1).
    Near-duplicates of past features are told by the cosines of each prefix. Takes: what its loss
    takes; prefixes of image, text, hard_text and past. Those of a teacher are
    left whole.
    """

    loss: str = "softmax"
    """The loss, as it would be named alone."""
    dims: tuple[int, ...] = (64, 128)
    """Widths of the prefixes; the full width counts besides."""

    def __post_init__(self) -> None:
        if not self.dims or any(dim < 1 for dim in self.dims):
            raise UserError(f"dims is {self.dims}. Write widths of 1 or more, such as (64, 128).")
        _ = self.inner

    @cached_property
    def inner(self) -> Any:
        """The loss itself."""
        return build("training.losses", self.loss)

    @property
    def start_scale(self) -> float | None:
        """The scale that the loss starts from."""
        return self.inner.start_scale

    @property
    def start_bias(self) -> float | None:
        """The bias that the loss starts from."""
        return self.inner.start_bias

    @property
    def takes(self) -> tuple[str, ...]:
        """The optional fields of a batch that the loss takes."""
        return takes(self.inner)

    @property
    def needs(self) -> tuple[str, ...]:
        """The optional fields of a batch that the loss needs."""
        return needs(self.inner)

    @property
    def least_dim(self) -> int:
        """The width of the widest prefix."""
        return max(*self.dims, least_dim(self.inner))

    @property
    def max_scale(self) -> float:
        """The largest scale that the loss allows."""
        return self.inner.max_scale

    def __call__(
        self,
        local: Pairs,
        world: Pairs,
        rows: Int64[Tensor, "batch"],
        scale: Float[Tensor, ""],
        bias: Float[Tensor, ""] | None,
    ) -> Float[Tensor, ""]:
        """Return the mean over widths of the loss of this process's pairs."""
        width = local.image.shape[1]
        refuse_dim(width, [self])
        losses = []
        for dim in sorted({*self.dims, width}):
            shorter = _prefix(local, dim)
            whole = shorter if world is local else _prefix(world, dim)
            losses.append(self.inner(shorter, whole, rows, scale, bias))
        return torch.stack(losses).mean()


def _prefix(pairs: Pairs, dim: int) -> Pairs:
    """Return the pairs with the first numbers of each feature, unit-length again."""
    if dim == pairs.image.shape[1]:
        return pairs

    def cut(features: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch prefix"]:
        return F.normalize(in_full_precision(features)[0][..., :dim], dim=-1)

    pairs = pairs._replace(image=cut(pairs.image), text=cut(pairs.text))
    if pairs.hard_text is not None:
        pairs = pairs._replace(hard_text=cut(pairs.hard_text))
    if pairs.past is not None:
        past = pairs.past
        pairs = pairs._replace(past=past._replace(image=cut(past.image), text=cut(past.text)))
    return pairs
