"""A model as transformers' ``CLIPModel`` or ``SiglipModel``, with its tokenizer and processor."""

import copy
import json
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from tokenizers import Regex, normalizers
from torch import nn
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)
from transformers.utils import logging

from vlp.console import say, warn
from vlp.encoder import DualEncoder, open_clip_weights
from vlp.errors import UserError
from vlp.exports.parity import BOUND, Probe, difference, normalised, probe
from vlp.exports.weight_names import State, open_clip_blocks, renamed, text_state, timm_blocks

ACTIVATIONS = {"QuickGELU": "quick_gelu", "GELUTanh": "gelu_pytorch_tanh"}
RESAMPLE = {"bicubic": 3, "bilinear": 2, "random": 3}
"""PIL's numbers. What is drawn at random in training is bicubic after it."""
END = 49407
"""CLIP's last token, by which CLIPModel finds the end of a caption."""
CLIP_VISION = {
    *("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"),
    *("patch_dropout", "act_kwargs", "norm_kwargs"),
}
CLIP_TEXT = {
    *("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"),
    *("act_kwargs", "norm_kwargs", "eos_id"),
}
SIGLIP_TEXT = {
    *CLIP_TEXT,
    *("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "no_causal_mask", "proj_bias"),
    *("pool_type", "pad_id"),
}
"""Fields of open_clip's configs that have a counterpart; any other must be as it is by default."""
SPECIAL = ("pad", "bos", "eos")
PUNCTUATION = r"[!-/:-@\[-`{-~]"
"""ASCII's, which open_clip's ``canonicalize`` takes out of captions."""


@torch.no_grad()
def write_transformers(encoder: DualEncoder, folder: Path) -> float:
    """Write a folder that ``AutoModel`` and ``AutoProcessor`` load; return how its features differ.

    The model is compared on the same pixels and ids. What its tokenizer and its processor make of
    captions and pictures is compared, too, and said.

    Raises:
        UserError: The architecture is none that ``CLIPModel`` or ``SiglipModel`` can be.
    """
    vision = encoder.config["model_cfg"]["vision_cfg"]
    logging.disable_progress_bar()
    make = _siglip if "timm_model_name" in vision else _clip
    model: Any
    model, tokenizer, processor = make(encoder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    probed = probe(encoder)
    loaded = AutoModel.from_pretrained(folder).eval()
    pixels = normalised(encoder, probed.pixels)
    found = loaded(pixel_values=pixels, input_ids=probed.tokens.long())
    worst = difference(probed, found.image_embeds, found.text_embeds)
    worst = max(worst, _compare_pictures(loaded, folder, encoder, probed))
    _compare_captions(loaded, AutoProcessor.from_pretrained(folder).tokenizer, probed)
    if encoder.is_sigmoid and make is _clip:
        warn(
            "CLIPModel has no logit bias: it is left out. Cosines are the same, not probabilities."
        )
    return worst


def _compare_pictures(model: Any, folder: Path, encoder: DualEncoder, probed: Probe) -> float:
    """Return how far features of pictures differ where the folder's own processor prepares them.

    With Pillow it gives the encoder's pixels, but for crops that lie one pixel to the side. With
    torch, which is its default, it resizes otherwise; how far off that is is said.

    Raises:
        UserError: With Pillow it gives others, so that its options are wrong.
    """
    off = {}
    for backend in ("torchvision", "pil"):
        processor = AutoProcessor.from_pretrained(folder, backend=backend).image_processor
        pixels = processor(probed.pictures, return_tensors="pt")["pixel_values"]
        image = model.get_image_features(pixel_values=pixels)
        image = F.normalize(getattr(image, "pooler_output", image), dim=-1)
        off[backend] = (image - probed.image).abs().amax(dim=1)
    mode = encoder.config["preprocess_cfg"].get("resize_mode", "shortest")
    is_alike = [
        mode != "shortest" or _is_cropped_alike(picture.size, encoder.image_size[0])
        for picture in probed.pictures
    ]
    worst = off["pil"][is_alike].max().item()
    if not worst <= BOUND:
        raise UserError(
            f"The exported processor's pictures differ from the encoder's: features are off by "
            f"{worst:.1e}, more than {BOUND:g}. Write --to open_clip or --to onnx."
        )
    say(
        f'From pictures, AutoProcessor.from_pretrained(..., backend="pil") is off by {worst:.1e}, '
        f"with its default, torch's resizing, by {off['torchvision'].max():.1e}."
    )
    return worst


def _is_cropped_alike(size: tuple[int, int], side: int) -> bool:
    """Return whether transformers and torchvision cut the same centre out of a picture.

    Half of what is left over is rounded down there, and to the even number here.
    """
    rest = int(side * max(size) / min(size)) - side
    return rest // 2 == round(rest / 2)


def _compare_captions(model: Any, tokenizer: Any, probed: Probe) -> None:
    """Say which captions transformers' tokenizer reads otherwise."""
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    length = probed.tokens.shape[1]
    ids = tokenizer(probed.captions, max_length=length, **options)["input_ids"]
    text = model.get_text_features(input_ids=ids)
    text = F.normalize(getattr(text, "pooler_output", text), dim=-1)
    differs = (text - probed.text).abs().amax(dim=1).tolist()
    for caption, apart in zip(probed.captions, differs, strict=True):
        if apart > BOUND:
            warn(f"transformers reads the caption {caption[:40]!r} otherwise: off by {apart:.1e}.")


def _clip(encoder: DualEncoder) -> tuple[nn.Module, Any, Any]:
    model_cfg = encoder.config["model_cfg"]
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    _check_fields("image", vision, CLIPVisionCfg, CLIP_VISION)
    _check_fields("text", text, CLIPTextCfg, CLIP_TEXT)
    visual: Any = encoder.visual
    tower: Any = encoder.text
    if not isinstance(visual.image_size, int) and len(set(visual.image_size)) > 1:
        raise _no_counterpart(f"pictures of {visual.image_size} pixels", "square ones")
    width, layers = visual.conv1.out_channels, visual.transformer.resblocks
    config = CLIPConfig(
        projection_dim=model_cfg["embed_dim"],
        vision_config={
            **_sizes(width, layers, layers[0].mlp.c_fc.out_features, layers[0].attn.num_heads),
            "hidden_act": _activation(layers[0].mlp.gelu),
            "layer_norm_eps": visual.ln_pre.eps,
            "image_size": encoder.image_size[0],
            "patch_size": visual.conv1.kernel_size[0],
        },
        text_config=_text_config(tower) | {"eos_token_id": END, "bos_token_id": END - 1},
    )
    state = open_clip_weights(encoder)
    named = {
        "logit_scale": state["logit_scale"],
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "visual_projection.weight": state["visual.proj"].T,
        "text_projection.weight": state["text.text_projection"].T,
        **renamed(state, "visual.ln_pre", "vision_model.pre_layrnorm"),
        **renamed(state, "visual.ln_post", "vision_model.post_layernorm"),
        **open_clip_blocks(state, "visual.transformer", "vision_model"),
        **text_state(state),
    }
    model = _loaded(CLIPModel(config), named)
    return model, _clip_tokenizer(encoder), _image_processor(encoder, CLIPImageProcessor)


def _siglip(encoder: DualEncoder) -> tuple[nn.Module, Any, Any]:
    model_cfg = encoder.config["model_cfg"]
    name, text = model_cfg["vision_cfg"]["timm_model_name"], model_cfg["text_cfg"]
    trunk: Any = getattr(encoder.visual, "trunk", None)
    pool: Any = getattr(trunk, "attn_pool", None)
    if pool is None or trunk.cls_token is not None or not isinstance(trunk.head, nn.Identity):
        raise _no_counterpart(f"timm's {name}", "SigLIP's towers, such as ViT-B-16-SigLIP")
    _check_fields("text", text, CLIPTextCfg, SIGLIP_TEXT)
    if not text.get("no_causal_mask") or text.get("pool_type") != "last":
        raise _no_counterpart("a causal text tower beside SigLIP's image tower", "SigLIP's")
    if encoder.tokenizer.hugging_face is None:
        raise _no_counterpart("CLIP's tokenizer in a SigLIP", "one with hf_tokenizer_name")
    tower: Any = encoder.text
    tokenizer = _cleaning(encoder.tokenizer.hugging_face, text)
    blocks = trunk.blocks
    config = SiglipConfig(
        vision_config={
            **_sizes(trunk.embed_dim, blocks, blocks[0].mlp.fc1.out_features, pool.num_heads),
            "hidden_act": _activation(blocks[0].mlp.act),
            "layer_norm_eps": blocks[0].norm1.eps,
            "image_size": encoder.image_size[0],
            "patch_size": trunk.patch_embed.proj.kernel_size[0],
        },
        text_config=_text_config(tower)
        | {"projection_size": model_cfg["embed_dim"]}
        | {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in SPECIAL},
    )
    state = open_clip_weights(encoder)
    patch, position = "visual.trunk.patch_embed.proj", "visual.trunk.pos_embed"
    embeddings, pooled = "vision_model.embeddings", "visual.trunk.attn_pool"
    head = "vision_model.head"
    named = {
        "logit_scale": state["logit_scale"].reshape(1),
        "logit_bias": state.get("logit_bias", torch.zeros(())).reshape(1),
        **renamed(state, patch, f"{embeddings}.patch_embedding"),
        f"{embeddings}.position_embedding.weight": state[position].squeeze(0),
        **renamed(state, "visual.trunk.norm", "vision_model.post_layernorm"),
        **dict(timm_blocks(state)),
        f"{head}.probe": state[f"{pooled}.latent"],
        **{
            f"{head}.attention.in_proj_{part}": torch.cat(
                [state[f"{pooled}.q.{part}"], state[f"{pooled}.kv.{part}"]]
            )
            for part in ("weight", "bias")
        },
        **renamed(state, f"{pooled}.proj", f"{head}.attention.out_proj"),
        **renamed(state, f"{pooled}.norm", f"{head}.layernorm"),
        **renamed(state, f"{pooled}.mlp.fc1", f"{head}.mlp.fc1"),
        **renamed(state, f"{pooled}.mlp.fc2", f"{head}.mlp.fc2"),
        **text_state(state),
        **renamed(state, "text.text_projection", "text_model.head"),
    }
    model = _loaded(SiglipModel(config), named)
    processor = _image_processor(encoder, SiglipImageProcessor)
    return model, tokenizer, processor


def _cleaning(tokenizer: Any, text_cfg: dict[str, Any]) -> Any:
    """Return a tokenizer that cleans captions as open_clip does before it asks its own."""
    clean = (text_cfg.get("tokenizer_kwargs") or {}).get("clean", "whitespace")
    steps = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    if clean != "whitespace":
        steps.insert(0, normalizers.Lowercase())
    if clean == "canonicalize":
        marks = [normalizers.Replace("_", " "), normalizers.Replace(Regex(PUNCTUATION), "")]
        steps = [*marks, *steps]
    tokenizer = copy.deepcopy(tokenizer)
    own = tokenizer.backend_tokenizer.normalizer
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([*steps, *([own] if own else [])])
    return tokenizer


def _sizes(width: int, layers: Any, hidden: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
    }


def _text_config(tower: Any) -> dict[str, Any]:
    layers = tower.transformer.resblocks
    hidden, heads = layers[0].mlp.c_fc.out_features, layers[0].attn.num_heads
    return {
        **_sizes(tower.ln_final.normalized_shape[0], layers, hidden, heads),
        "hidden_act": _activation(layers[0].mlp.gelu),
        "layer_norm_eps": tower.ln_final.eps,
        "vocab_size": tower.token_embedding.num_embeddings,
        "max_position_embeddings": len(tower.positional_embedding),
    }


def _loaded(model: nn.Module, state: State) -> nn.Module:
    state = {name: value.float().contiguous() for name, value in state.items()}
    missing, unknown = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("position_ids")]
    assert not missing, missing
    assert not unknown, unknown
    return model.eval()


def _activation(module: nn.Module) -> str:
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_pytorch_tanh"
    name = type(module).__name__
    if name not in ACTIVATIONS:
        raise _no_counterpart(f"the activation {name}", ", ".join(ACTIVATIONS))
    return ACTIVATIONS[name]


def _clip_tokenizer(encoder: DualEncoder) -> CLIPTokenizer:
    ours = SimpleTokenizer()
    merges = sorted(ours.bpe_ranks, key=lambda pair: ours.bpe_ranks[pair])
    with TemporaryDirectory() as place:  # from files, whatever the version of transformers
        names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
        vocabulary = {names.get(token, token): number for token, number in ours.encoder.items()}
        (Path(place) / "vocab.json").write_text(json.dumps(vocabulary))
        lines = ["#version: 0.2", *map(" ".join, merges)]
        (Path(place) / "merges.txt").write_text("\n".join(lines) + "\n")
        return CLIPTokenizer.from_pretrained(place, model_max_length=encoder.tokenizer.length)


def _image_processor(encoder: DualEncoder, kind: type) -> Any:
    told = encoder.config["preprocess_cfg"]
    height, width = encoder.image_size
    mode = told.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise _no_counterpart(f"pictures resized to their {mode} side", "shortest or squash")
    whole = {"height": height, "width": width}
    is_cropped = mode == "shortest"
    options = {
        "size": {"shortest_edge": height} if is_cropped else whole,
        "resample": RESAMPLE[told.get("interpolation", "bicubic")],
        "image_mean": list(told["mean"]),
        "image_std": list(told["std"]),
    }
    if kind is CLIPImageProcessor:
        options |= {"do_center_crop": is_cropped, "crop_size": whole}
    elif is_cropped:
        raise _no_counterpart("pictures cropped to a square in a SigLIP", "resize_mode squash")
    return kind(**options)


def _check_fields(tower: str, told: dict[str, Any], form: type, known: set[str]) -> None:
    """Raise UserError where a tower's config asks for what has no counterpart."""
    usual = {field.name: field.default for field in fields(form)}
    for name, value in told.items():
        if name not in known and value != usual.get(name):
            raise _no_counterpart(f"{name}={value!r} of the {tower} tower", f"{usual.get(name)!r}")
    if isinstance(told.get("layers"), list | tuple):
        raise _no_counterpart("an image tower of ResNet's kind", "a ViT")


def _no_counterpart(what: str, allowed: str) -> UserError:
    return UserError(
        f"transformers' CLIPModel and SiglipModel cannot be {what}; they take {allowed}. "
        f"Write --to open_clip or --to onnx."
    )
