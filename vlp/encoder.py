"""The dual encoder: an image tower, a text tower, a logit scale and bias, and their preprocessing.

With weights.py and tokenizer.py the door to open_clip, and through it to timm and transformers. An
encoder is built from a config of open_clip's own form, ``{"model_cfg": ..., "preprocess_cfg":
...}``, so that whatever open_clip can build can be trained here, and what is trained here loads
there.
"""

import copy
import json
import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64, UInt8
from open_clip.factory import _get_hf_config, get_model_config
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from vlp.attention import quicken
from vlp.caption_length import cut_masks, find_last_read
from vlp.errors import UserError, first_line, nearest
from vlp.patch_dropout import drop_patches
from vlp.picture_size import encode_at_any_size
from vlp.projection import encode_with_pooled
from vlp.tokenizer import Tokenizer, create_tokenizer
from vlp.weights import BIG_VISION, Undrawn, load_both, load_tower, or_user_error

ARCHITECTURES = Path(__file__).parent / "architectures"
LENGTH_MULTIPLE = 8
"""Captions are cut to multiples of it on a GPU or compiled: few shapes, and whole tiles."""


class Encoding(NamedTuple):
    """What one pass through the encoder gives; features are unit-length rows."""

    image: Float[Tensor, "images dim"] | None
    text: Float[Tensor, "texts dim"] | None
    scale: Float[Tensor, ""]
    bias: Float[Tensor, ""] | None
    image_pooled: Float[Tensor, "images image_width"] | None = None
    """What the image tower projects to its features, where asked for; of any length."""
    text_pooled: Float[Tensor, "texts text_width"] | None = None


class DualEncoder(nn.Module):
    """An image tower and a text tower into one space.

    Attributes:
        config: ``{"model_cfg": ..., "preprocess_cfg": ...}`` as open_clip writes it.
        transform: An upright RGB picture to the uint8 ``[3, height, width]`` that the tower takes.
        tokenizer: Captions to ids.
        logit_scale: Natural logarithm of the scale, ``[1]``: FSDP2 refuses 0-dim parameters.
        logit_bias: ``[1]``, or None for an encoder trained with a softmax.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        model: open_clip.CustomTextCLIP,
        config: dict[str, Any],
        tokenizer: Tokenizer,
    ) -> None:
        super().__init__()
        # Convolutions take 0.6 times the time with channels last (CPU, measured; GPUs gain too).
        self.visual = model.visual.to(memory_format=torch.channels_last)
        self.text = model.text
        for tower in (self.visual, self.text):
            quicken(tower)
        cut_masks(self.text)
        self.is_compiled = False
        self.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(1).clone())
        bias = model.logit_bias
        self.logit_bias = None if bias is None else nn.Parameter(bias.detach().reshape(1).clone())
        size = model.visual.image_size
        preprocess = merge_preprocess_dict(PreprocessCfg(), config.get("preprocess_cfg", {}))
        preprocess["size"] = list(size) if isinstance(size, tuple) else size
        self.config = {"model_cfg": config["model_cfg"], "preprocess_cfg": preprocess}
        self.transform = _pixels_only(image_transform_v2(PreprocessCfg(**preprocess), False))
        self.tokenizer = tokenizer
        share = config["model_cfg"]["vision_cfg"].get("patch_dropout")
        self.patch_dropout = drop_patches(self.visual, share) if share else None
        for name in ("mean", "std"):
            value = torch.tensor(preprocess[name]).reshape(3, 1, 1) * 255
            self.register_buffer(f"pixel_{name}", value, persistent=False)

    def forward(
        self,
        images: UInt8[Tensor, "images 3 height width"] | None = None,
        tokens: Int[Tensor, "texts length"] | None = None,
        seed: Int64[Tensor, "images"] | None = None,
        pooled: bool = False,
    ) -> Encoding:
        """Encode images, texts or both. The only way in, so that DDP's and FSDP's hooks run.

        Args:
            images: Pixels, as ``transform`` gives them.
            tokens: Ids, as ``tokenizer`` gives them.
            seed: The patches that training leaves out follow from each picture's seed.
            pooled: Whether the rows before the projection are given, too.
        """
        image = text = image_pooled = text_pooled = None
        if images is not None:
            if self.patch_dropout is not None:
                self.patch_dropout.seed = seed
            encode = partial(encode_at_any_size, self.visual)
            image, image_pooled = _run(self.visual, encode, self._normalise(images), pooled)
        if tokens is not None:
            text, text_pooled = _run(self.text, self.text, tokens, pooled)
        # No view of the parameter, which FSDP frees.
        bias = None if self.logit_bias is None else self.logit_bias.squeeze(0).clone()
        scale = self.logit_scale.squeeze(0).exp()
        return Encoding(image, text, scale, bias, image_pooled, text_pooled)

    def caption_length(self, tokens: Int[Tensor, "texts length"]) -> int:
        """Return how many tokens of these captions the text tower reads: the longest one's.

        Captions cut to so many have the same features, to rounding. A tower that reads padding,
        as SigLIP's, reads all. Asked of tokens on the host, it makes no device wait.
        """
        full = tokens.shape[1]
        if not len(tokens):
            return full
        length = int(self.caption_lengths(tokens).max())
        if self.is_compiled or self.logit_scale.device.type == "cuda":
            length += -length % LENGTH_MULTIPLE
        return min(length, full)

    def caption_lengths(self, tokens: Int[Tensor, "texts length"]) -> Int64[Tensor, "texts"]:
        """Return how many tokens of each caption the text tower reads."""
        last_read = find_last_read(self.text)
        if last_read is None:
            return torch.full((len(tokens),), tokens.shape[1])
        return last_read(tokens) + 1

    @property
    def dim(self) -> int:
        """Length of a feature."""
        return self.config["model_cfg"]["embed_dim"]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures that the image tower takes, in pixels."""
        size = self.config["preprocess_cfg"]["size"]
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def is_sigmoid(self) -> bool:
        """Whether the encoder was trained with a sigmoid: each pair has its own probability."""
        return self.logit_bias is not None

    def set_logits(self, scale: float, bias: float | None) -> None:
        """Start from this scale and bias; None leaves the encoder without a bias."""
        device = self.logit_scale.device
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(scale), device=device))
        self.logit_bias = None if bias is None else nn.Parameter(torch.full((1,), bias).to(device))

    def _normalise(self, images: Tensor) -> Tensor:
        mean, std = self.pixel_mean, self.pixel_std
        images = images.to(mean.dtype, memory_format=torch.channels_last)
        return images.sub_(mean).div_(std)


def architectures() -> list[str]:
    """Return the names of the architectures that need no file: ours, then open_clip's."""
    return sorted(path.stem for path in ARCHITECTURES.glob("*.json")) + open_clip.list_models()


def read_config(name: str) -> dict[str, Any]:
    """Return the config of an architecture: ours, open_clip's, a JSON file's or a model's.

    Args:
        name: ``tiny``, ``ViT-B-32``, ``path/to/model.json``, ``hf-hub:org/repo`` or
            ``local-dir:path`` (open_clip's folder, which a checkpoint of ours is).

    Raises:
        UserError: There is no such architecture, or the file is none.
    """
    ours = ARCHITECTURES / f"{name}.json"
    path = ours if ours.is_file() else Path(name.removeprefix("local-dir:"))
    if path.is_dir():
        path = path / "open_clip_config.json"
    if path.suffix == ".json":
        try:
            config = json.loads(path.read_text())
        except OSError:
            raise UserError(f"There is no architecture file {path}.") from None
        except ValueError as error:
            raise UserError(f"The architecture {path} is no JSON: {error}.") from None
    else:
        config = _open_clip_config(name)
        if config is None:
            raise UserError(f"There is no architecture {name!r}. {nearest(name, architectures())}")
    config = config if "model_cfg" in config else {"model_cfg": config}
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(config["model_cfg"])
    if missing or "multimodal_cfg" in config["model_cfg"]:
        what = f"has no {min(missing)}" if missing else "has a captioning decoder"
        raise UserError(f"The architecture {name} {what}. Give one with two towers, as ViT-B-32.")
    return config


def create_encoder(
    config: dict[str, Any],
    *,
    weights: str | Path | None = None,
    image_weights: str | None = None,
    text_weights: str | None = None,
    image_size: int | None = None,
    context_length: int | None = None,
    patch_dropout: float | None = None,
    folder: Path | None = None,
) -> DualEncoder:
    """Build an encoder. Weights that are not given are random.

    Args:
        config: What ``read_config`` returns.
        weights: An open_clip checkpoint (``.pt``, ``.bin``, ``.safetensors``) of both towers; read
            with ``weights_only=True``, so nothing in it is ever run.
        image_weights: ``timm`` for the timm tower's own weights, or a file: an open_clip
            checkpoint, or the state dict of a timm model.
        text_weights: ``hf`` for the Hugging Face tower's own weights, or an open_clip checkpoint.
        image_size: Side of the pictures in pixels; position embeddings are resized to it.
        context_length: Tokens per caption; position embeddings are resized to it.
        patch_dropout: Share of a picture's patches left out in training; None: the config's.
        folder: A checkpoint folder with the text tower's Hugging Face config and tokenizer.

    Raises:
        UserError: The weights are of another architecture, or cannot be read.
    """
    config = copy.deepcopy(config)
    vision, text = config["model_cfg"]["vision_cfg"], config["model_cfg"]["text_cfg"]
    if image_size:
        vision["image_size"] = image_size
    if context_length:
        text["context_length"] = context_length
    if patch_dropout is not None:
        vision["patch_dropout"] = patch_dropout
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = image_weights == "timm"
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = text_weights == "hf"
    loads_all = weights is not None and Path(weights).suffix not in BIG_VISION
    with Undrawn() if loads_all else nullcontext():
        model = _build(config["model_cfg"], folder)
    if "timm_model_name" in vision:
        size = vision.get("image_size", 224)
        visual: Any = model.visual
        visual.set_input_size(size if isinstance(size, int) else tuple(size))
    if weights:
        load_both(model, weights)
    if image_weights and image_weights != "timm":
        load_tower(model, "visual", image_weights)
    if text_weights and text_weights != "hf":
        load_tower(model, "text", text_weights)
    return DualEncoder(model, config, create_tokenizer(text, folder, room=model.context_length))


def open_clip_weights(
    encoder: DualEncoder, state: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the state dict under open_clip's names and shapes: scale and bias are 0-dim.

    Args:
        encoder: An encoder.
        state: A state dict in place of its own.
    """
    state = encoder.state_dict() if state is None else state
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    for name in ("logit_scale", "logit_bias"):
        if name in state:
            state[name] = state[name].reshape(())
    return state


def open_clip_config(encoder: DualEncoder) -> dict[str, Any]:
    """Return the content of ``open_clip_config.json`` for this encoder."""
    config = copy.deepcopy(encoder.config)
    model = config["model_cfg"]
    model["custom_text"] = True
    model["init_logit_bias"] = -10.0 if encoder.is_sigmoid else None
    model["vision_cfg"].pop("timm_model_pretrained", None)
    model["text_cfg"].pop("hf_model_pretrained", None)
    return config


def save_text_files(encoder: DualEncoder, folder: Path) -> None:
    """Write the Hugging Face config and tokenizer that the text tower needs, where it has them."""
    if encoder.tokenizer.hugging_face is not None:
        encoder.tokenizer.hugging_face.save_pretrained(folder)
    config: Any = getattr(encoder.text, "config", None)
    if config is not None:
        config.save_pretrained(folder)


def _run(
    tower: nn.Module, encode: Callable[[Tensor], Tensor], inputs: Tensor, pooled: bool
) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, "rows width"] | None]:
    """Return unit-length rows and, where asked, those before the projection; fp32 at least."""
    if not pooled:
        return F.normalize(_precise(encode(inputs)), dim=-1), None
    features, rows = encode_with_pooled(tower, encode, inputs)
    return F.normalize(_precise(features), dim=-1), _precise(rows)


def _precise(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _open_clip_config(name: str) -> dict[str, Any] | None:
    if name.startswith("hf-hub:"):
        return or_user_error(lambda: _get_hf_config(name.removeprefix("hf-hub:")), name)
    return get_model_config(name.replace("/", "-"))


def _build(model_cfg: dict[str, Any], folder: Path | None) -> open_clip.CustomTextCLIP:
    options = copy.deepcopy(model_cfg)
    options.pop("custom_text", None)
    options["vision_cfg"].pop("patch_dropout", None)  # ours takes its place
    text = options["text_cfg"]
    if "hf_model_name" in text and folder and (folder / "config.json").is_file():
        text["hf_model_name"] = str(folder)
    logging.getLogger("timm").setLevel(logging.WARNING)
    try:
        return open_clip.CustomTextCLIP(**options)
    except (TypeError, RuntimeError, ValueError, AssertionError, OSError) as error:
        raise UserError(f"Cannot build the architecture: {first_line(error)}.") from None


def _pixels_only(transform: Any) -> Callable[[Image.Image], Tensor]:
    """Drop the last two steps of open_clip's transform, to float and normalise: pixels stay uint8.

    The encoder normalises on the device, with the same numbers.
    """
    steps = transform.transforms[:-2]

    def to_pixels(image: Image.Image) -> Tensor:
        for step in steps:
            image = step(image)
        return pil_to_tensor(image)

    return to_pixels
