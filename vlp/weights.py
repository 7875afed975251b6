"""Weights into an encoder's towers: of both, of one, from open_clip, timm or ours.

Beside encoder.py the second door to open_clip and timm. Files are read with ``weights_only=True``
or as safetensors, so nothing in them is ever run.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.factory import (
    load_checkpoint,
    load_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
)
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from timm.layers import resample_abs_pos_embed
from torch import nn
from torch.overrides import TorchFunctionMode

from vlp.errors import UserError, first_line, nearest

TIMM_POSITIONS = "visual.trunk.pos_embed"
BIG_VISION = (".npz", ".npy")
"""How big_vision's own files of SigLIP end; open_clip copies what it finds there."""


class Undrawn(TorchFunctionMode):
    """Draws no random numbers: weights that are about to be loaded take half the time to load."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Leave a tensor as it is where ``normal_``, ``trunc_normal_`` and others would fill it."""
        kwargs = kwargs or {}
        if func.__name__.endswith(("normal_", "uniform_")):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def fetch_weights(
    name: str, pretrained: str | None, config: dict[str, Any]
) -> tuple[dict[str, Any], str | None]:
    """Return the config of a model that open_clip knows and the file of its weights.

    Args:
        name: An architecture or ``hf-hub:org/repo``.
        pretrained: A tag of open_clip's, such as ``laion2b_s34b_b79k``, or a file, or None.
        config: The model's config; a tag brings its own preprocessing and activation.

    Raises:
        UserError: open_clip knows no such tag, or the weights cannot be fetched.
    """
    if pretrained and Path(pretrained).is_file():
        return config, pretrained
    if name.startswith("hf-hub:"):
        repository = name.removeprefix("hf-hub:")
        return config, or_user_error(lambda: download_pretrained_from_hf(repository), name)
    if pretrained is None:
        return config, None
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        hint = nearest(pretrained, tags) if tags else "It has none; give a file."
        raise UserError(f"{name} has no weights {pretrained!r}. {hint}")
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    config["preprocess_cfg"] = merge_preprocess_dict(PreprocessCfg(), tag)
    if tag.get("quick_gelu"):
        config["model_cfg"]["quick_gelu"] = True
    return config, or_user_error(lambda: download_pretrained(tag), pretrained)


def load_both(model: open_clip.CustomTextCLIP, weights: str | Path) -> None:
    """Load a checkpoint of both towers, scale and bias; position embeddings are resized.

    Raises:
        UserError: The file cannot be read, or is of another architecture.
    """
    if Path(weights).suffix in BIG_VISION:
        or_user_error(lambda: load_checkpoint(model, str(weights)), f"the weights {weights}")
        return
    state = convert_state_dict(model, _read(weights))
    for name in ("logit_scale", "logit_bias"):
        own = getattr(model, name)
        if own is None:
            state.pop(name, None)
        else:
            state[name] = state.get(name, torch.zeros_like(own)).reshape(own.shape)
    _load(model, state, weights)


def load_tower(model: open_clip.CustomTextCLIP, prefix: str, weights: str) -> None:
    """Load one tower, ``visual`` or ``text``, from a checkpoint of both or a timm state dict.

    Raises:
        UserError: The file cannot be read, or is of another architecture.
    """
    state = _read(weights)
    own = {name: value for name, value in state.items() if name.startswith(f"{prefix}.")}
    if not own and hasattr(getattr(model, prefix), "trunk"):
        # A timm model's own state dict: its classifier gives way to our projection.
        trunk = {f"{prefix}.trunk.{name}": value for name, value in state.items()}
        own = {name: value for name, value in trunk.items() if name in model.state_dict()}
    heads = (f"{prefix}.head.",)
    others = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith(f"{prefix}.") or (name.startswith(heads) and name not in own)
    }
    _load(model, {**others, **own}, weights)


def or_user_error(action: Callable[[], Any], what: str) -> Any:
    """Return what an outside library gives; any error of its own becomes one line."""
    try:
        return action()
    except Exception as error:
        raise UserError(f"Cannot load {what}: {first_line(error)}.") from None


def _read(weights: str | Path) -> dict[str, torch.Tensor]:
    """Return the state dict of a file, under the names of towers of their own."""
    try:
        loaded: Any = load_state_dict(str(weights), weights_only=True)
    except Exception as error:
        raise UserError(f"Cannot read the weights {weights}: {first_line(error)}.") from None
    state = dict(loaded)
    if "positional_embedding" in state:
        state = convert_to_custom_text_state_dict(state)
    # transformers stopped saving these in 4.31.
    state.pop("text.transformer.embeddings.position_ids", None)
    return state


def _load(model: nn.Module, state: dict[str, Any], weights: str | Path) -> None:
    try:
        resize_pos_embed(state, model)
        resize_text_pos_embed(state, model)
        _resize_timm_positions(state, model)
        model.load_state_dict(state)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"The weights {weights} are of another architecture: {_mismatch(error)}."
        ) from None


def _resize_timm_positions(state: dict[str, Any], model: Any) -> None:
    trunk = getattr(model.visual, "trunk", None)
    wanted, given = getattr(trunk, "pos_embed", None), state.get(TIMM_POSITIONS)
    if trunk is None or wanted is None or given is None or wanted.shape == given.shape:
        return
    prefix_tokens = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
    grid = list(trunk.patch_embed.grid_size)
    state[TIMM_POSITIONS] = resample_abs_pos_embed(given, grid, num_prefix_tokens=prefix_tokens)


def _mismatch(error: Exception) -> str:
    """Return the first of the parameters that do not fit, from load_state_dict's long message."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines[1:] if line), lines[0])[:200].rstrip(".!")
