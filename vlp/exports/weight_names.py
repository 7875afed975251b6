"""The names of weights: open_clip's and timm's to those of transformers."""

from collections.abc import Iterator, Mapping

from torch import Tensor

State = dict[str, Tensor]
VIT_NAMES = {
    **{"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1"},
    **{"mlp.c_proj": "mlp.fc2", "attn.out_proj": "self_attn.out_proj"},
}
TIMM_NAMES = {
    **{"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"},
    **{"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"},
}
QKV = ("q_proj", "k_proj", "v_proj")


def text_state(state: Mapping[str, Tensor]) -> State:
    """Return the weights of open_clip's text tower, less its projection."""
    embeddings = "text_model.embeddings"
    return {
        f"{embeddings}.token_embedding.weight": state["text.token_embedding.weight"],
        f"{embeddings}.position_embedding.weight": state["text.positional_embedding"],
        **renamed(state, "text.ln_final", "text_model.final_layer_norm"),
        **open_clip_blocks(state, "text.transformer", "text_model"),
    }


def open_clip_blocks(state: Mapping[str, Tensor], source: str, target: str) -> State:
    """Return the weights of a transformer's blocks under transformers' names.

    Args:
        state: open_clip's.
        source: Its transformer, such as ``text.transformer``.
        target: The tower there, such as ``text_model``.
    """
    found: State = {}
    for name, value in state.items():
        if not name.startswith(f"{source}.resblocks."):
            continue
        number, _, rest = name.removeprefix(f"{source}.resblocks.").partition(".")
        layer = f"{target}.encoder.layers.{number}"
        module, _, part = rest.rpartition(".")
        if rest.startswith("attn.in_proj_"):
            found |= _split(value, layer, rest.removeprefix("attn.in_proj_"))
        else:
            found[f"{layer}.{VIT_NAMES[module]}.{part}"] = value
    return found


def timm_blocks(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of the blocks of timm's ViT by transformers' names."""
    for name, value in state.items():
        if not name.startswith("visual.trunk.blocks."):
            continue
        number, _, rest = name.removeprefix("visual.trunk.blocks.").partition(".")
        layer = f"vision_model.encoder.layers.{number}"
        module, _, part = rest.rpartition(".")
        if module == "attn.qkv":
            yield from _split(value, layer, part).items()
        else:
            yield f"{layer}.{TIMM_NAMES[module]}.{part}", value


def _split(value: Tensor, layer: str, part: str) -> State:
    """Return queries, keys and values, which are one matrix here and three there."""
    pieces = value.chunk(3)
    return {f"{layer}.self_attn.{q}.{part}": own for q, own in zip(QKV, pieces, strict=True)}


def renamed(state: Mapping[str, Tensor], source: str, target: str) -> State:
    """Return the weight and the bias of a module under another name."""
    return {f"{target}.{part}": state[f"{source}.{part}"] for part in ("weight", "bias")}
