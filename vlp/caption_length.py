"""How many tokens of captions a text tower reads: those after them need not be encoded."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int, Int64
from torch import Tensor, nn

LastRead = Callable[[Int[Tensor, "texts length"]], Int64[Tensor, "texts"]]
"""Captions to the place of the last token that changes each one's feature, from 0."""


def find_last_read(tower: Any) -> LastRead | None:
    """Return what finds the last token that a tower of open_clip's reads; None: it reads all.

    A causal tower reads up to the token that it pools: the feature stays the same, whatever
    follows. A tower with a padding mask reads up to the last token that is no padding. Others, as
    SigLIP's, attend to padding or pool the last place: without it their features are others.
    """
    if hasattr(tower, "pooler"):  # a Hugging Face tower: its own mask is made of this very id
        padding = tower.config.pad_token_id
        return lambda tokens: _last(tokens != padding)
    if getattr(tower, "cls_emb", None) is not None:  # stands behind all tokens, as CoCa's
        return None
    pool = _POOLS.get(getattr(tower, "pool_type", None))
    if pool is None:
        return None
    if tower.attn_mask is not None:
        return lambda tokens: pool(tower, tokens)
    if not tower.use_pad_mask:
        return None
    return lambda tokens: torch.maximum(pool(tower, tokens), _last(tokens != tower.pad_id))


def cut_masks(tower: Any) -> None:
    """Let open_clip's causal tower take captions shorter than its context."""
    if isinstance(getattr(tower, "attn_mask", None), Tensor):
        tower.transformer.register_forward_pre_hook(_cut_mask, with_kwargs=True)


def _cut_mask(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    length = args[0].shape[1]
    return args, kwargs | {"attn_mask": kwargs["attn_mask"][..., :length, :length]}


_POOLS: dict[Any, Callable[[Any, Tensor], Tensor]] = {
    "first": lambda tower, tokens: torch.zeros_like(tokens[:, 0]),
    "argmax": lambda tower, tokens: tokens.argmax(dim=1),
    "eos": lambda tower, tokens: (tokens == tower.eos_id).int().argmax(dim=1),
}
"""Where towers of open_clip's pool, by ``pool_type``; ``last`` is the end of the context."""


def _last(is_read: Tensor) -> Tensor:
    """Return the last place of each row that holds, 0 where none does."""
    places = torch.arange(is_read.shape[1], device=is_read.device)
    return (is_read * places).amax(dim=1)
