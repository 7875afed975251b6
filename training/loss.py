"""What a loss is, and which fields of a batch it can use."""

from collections.abc import Iterable
from typing import Any, Protocol

from jaxtyping import Float, Int64
from torch import Tensor

from vlp.errors import UserError
from vlp.types import Pairs

SOURCES = {
    "views": "--data.image-views",
    "text_views": "--data.text-views",
    "hard_text": "--negatives",
    "teacher": "--teacher",
    "past": "--memory",
}
"""The optional fields of ``Pairs``, and what fills each of them in a run."""


class Loss(Protocol):
    """A file of ``training/losses``, a frozen dataclass; one from elsewhere does as well.

    It declares ``start_scale`` and ``start_bias``, what training starts from (None: the loss does
    not take one), and ``max_scale``, the largest scale it allows. It may declare ``takes`` and
    ``needs``, the optional fields of a batch that it can use and cannot do without, and
    ``least_dim``, the width of the narrowest features that it can use.
    """

    def __call__(
        self,
        local: Pairs,
        world: Pairs,
        rows: Int64[Tensor, "batch"],
        scale: Float[Tensor, ""],
        bias: Float[Tensor, ""] | None,
    ) -> Float[Tensor, ""]:
        """Return the mean loss of this process's pairs against the pairs of every process.

        Args:
            local: This process's pairs.
            world: The pairs of every process, in rank order.
            rows: The row of ``world`` that each local pair is.
            scale: Factor on the cosines.
            bias: Added to the scaled cosines; None for an encoder without one.

        Raises:
            UserError: The batch holds a field that the loss does not take, or lacks one it needs.
        """
        ...


def takes(loss: Any) -> tuple[str, ...]:
    """Return the optional fields of a batch that a loss can use."""
    return getattr(loss, "takes", ())


def needs(loss: Any) -> tuple[str, ...]:
    """Return the optional fields of a batch that a loss cannot do without."""
    return getattr(loss, "needs", ())


def least_dim(loss: Any) -> int:
    """Return the width of the narrowest features that a loss can use."""
    return getattr(loss, "least_dim", 1)


def check_loss(loss: Any) -> Any:
    """Return the loss.

    Raises:
        UserError: It lacks what every loss declares, or names a field that no batch has.
    """
    for name in ("start_scale", "start_bias", "max_scale"):
        if not hasattr(loss, name):
            raise UserError(f"The loss {_name(loss)} declares no {name}.")
    for name in ("takes", "needs"):
        fields = getattr(loss, name, ())
        if not isinstance(fields, tuple) or not set(fields) <= set(SOURCES):
            raise UserError(
                f"The loss {_name(loss)} {name} {fields!r}. Write a tuple of some of "
                f"{', '.join(SOURCES)}."
            )
    return loss


def refuse_fields(loss: Any, pairs: Pairs) -> None:
    """Raise UserError where the loss cannot use a field of the batch, or lacks one it needs."""
    refuse([field for field in SOURCES if getattr(pairs, field) is not None], [loss])


def refuse(fields: Iterable[str], losses: Iterable[Any]) -> None:
    """Raise UserError where none of the losses takes a field, or one of them needs another."""
    fields, losses = tuple(fields), tuple(losses)
    for field in fields:
        if not any(field in takes(loss) for loss in losses):
            names = " and ".join(map(_name, losses))
            raise UserError(
                f"The loss {names} cannot use {field}. Leave out {SOURCES[field]}, or add a loss "
                f"that takes it."
            )
    for loss in losses:
        for field in needs(loss):
            if field not in fields:
                raise UserError(
                    f"The loss {_name(loss)} needs {field}, which {SOURCES[field]} gives."
                )


def refuse_dim(dim: int, losses: Iterable[Any]) -> None:
    """Raise UserError where features of this width are too narrow for one of the losses."""
    for loss in losses:
        if dim < least_dim(loss):
            raise UserError(
                f"The loss {_name(loss)} needs features of at least {least_dim(loss)} numbers; "
                f"those of the model have {dim}."
            )


def _name(loss: Any) -> str:
    return type(loss).__module__.rpartition(".")[2]
