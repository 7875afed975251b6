"""What a tower makes of its input before the projection into the shared space.

Linear probes are trained on it (Radford et al. 2021, appendix A.3). Some towers project by a module
and some multiply with a bare parameter, deep in a function; with FSDP the parameter is whole only
while the tower computes. So the tower runs as always, and what it multiplies with the projection's
first weight is kept on the way.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PLACES = (
    "proj",  # open_clip's vision transformer, Hugging Face's text tower
    "text_projection",  # open_clip's text tower
    "attnpool.c_proj",  # CLIP's ResNets
    "head.proj",  # timm's towers with a linear head,
    "head.mlp",  # with two layers,
    "head.pool.proj",  # or with attention that pools
)


def encode_with_pooled(
    tower: nn.Module, encode: Callable[[Tensor], Tensor], inputs: Tensor
) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, "rows width"]]:
    """Return what a tower gives, and the pooled rows that it projects to it.

    Of a tower without a projection, as timm's in SigLIP, both are the same.

    Args:
        tower: An image or text tower of open_clip's.
        encode: Runs the tower on ``inputs``.
        inputs: Pixels or tokens.
    """
    recorder = _Recorder(tower)
    is_compiled = getattr(tower, "_compiled_call_impl", None) is not None
    # Compiled code calls no functions that could be seen.
    with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext(), recorder:
        features = encode(inputs)
    if recorder.rows is None:
        assert find_projection(tower) is None, "a projection that was not used"
        return features, features
    return features, recorder.rows


def find_projection(tower: nn.Module) -> nn.Module | nn.Parameter | None:
    """Return what a tower multiplies its pooled rows with, last of all; None if nothing."""
    for place in PLACES:
        found: Any = tower
        for name in place.split("."):
            found = getattr(found, name, None)
        if found is not None:
            return found if _first_weight(found) is not None else None
    trunk: Any = getattr(tower, "trunk", None)
    # timm's own classifier, where open_clip adds no head; an identity if the tower has no classes.
    found = trunk.get_classifier() if hasattr(trunk, "get_classifier") else None
    return found if isinstance(found, nn.Module) and _first_weight(found) is not None else None


def _first_weight(projection: nn.Module | nn.Parameter | None) -> nn.Parameter | None:
    if isinstance(projection, nn.Module):
        return next(projection.parameters(), None)
    return projection


class _Recorder(TorchFunctionMode):
    """Keeps what is multiplied with the first weight of a tower's projection."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.rows: Float[Tensor, "rows width"] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Looked up in each call: FSDP puts others in its place while the tower computes.
        projection = find_projection(self.tower)
        weight = _first_weight(projection)
        if weight is not None and any(value is weight for value in (*args, *kwargs.values())):
            inside = func is F.multi_head_attention_forward  # where CLIP's ResNets project
            self.rows = _attended(projection, args, kwargs) if inside else _pooled(args[0])
        return func(*args, **kwargs)


def _attended(projection: Any, args: tuple, kwargs: dict[str, Any]) -> Float[Tensor, "rows width"]:
    """Return what torch's attention gives without its projection, of the pooled place."""
    weight, bias = projection.weight, projection.bias
    identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    others = {id(weight): identity, id(bias): None}
    args = tuple(others.get(id(value), value) for value in args)
    kwargs = {name: others.get(id(value), value) for name, value in kwargs.items()}
    return F.multi_head_attention_forward(*args, **kwargs)[0][0]  # [places, rows, width], the first


def _pooled(rows: Tensor) -> Float[Tensor, "rows width"]:
    """Return a row for each input: timm's attention projects all places and takes the first."""
    return rows[:, 0] if rows.dim() == 3 else rows.flatten(1)
