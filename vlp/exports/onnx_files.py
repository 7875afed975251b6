"""A model as two ONNX files, one for each tower, checked with onnxruntime."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from vlp.encoder import DualEncoder, save_text_files
from vlp.errors import UserError, first_line, needs
from vlp.exports.parity import difference, probe

OPSET = 18
Tower = Literal["image", "text"]


class _ImageTower(nn.Module):
    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, pixels: UInt8[Tensor, "images 3 height width"]
    ) -> Float[Tensor, "images dim"] | None:
        return self.encoder(images=pixels).image


class _TextTower(nn.Module):
    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Int[Tensor, "texts length"]) -> Float[Tensor, "texts dim"] | None:
        return self.encoder(tokens=tokens).text


def write_onnx(encoder: DualEncoder, folder: Path) -> float:
    """Write ``image.onnx``, ``text.onnx`` and what they are fed; return how far features differ.

    ``image.onnx`` takes ``pixels``, uint8 ``[n, 3, height, width]`` of upright RGB pictures resized
    as ``preprocess.json`` says, and normalises them itself; ``text.onnx`` takes ``tokens``, int64
    ``[n, length]``, padded. Both give unit-length rows in fp32, for any n.

    Raises:
        UserError: The extra ``export`` is not installed, or a tower cannot be exported.
    """
    with needs("export", "ONNX files take onnx, onnxscript and onnxruntime"):
        import onnxruntime
        import onnxscript  # noqa: F401, torch asks for it only when it is half done
    encoder = encoder.cpu()
    probed = probe(encoder)
    found = {}
    towers: dict[Tower, nn.Module] = {"image": _ImageTower(encoder), "text": _TextTower(encoder)}
    inputs = {"image": probed.pixels, "text": probed.tokens.long()}
    for kind, tower in towers.items():
        path = folder / f"{kind}.onnx"
        name = "pixels" if kind == "image" else "tokens"
        _export(tower.eval(), inputs[kind], name, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        rows = inputs[kind].numpy()
        whole, alone = (np.array(session.run(None, {name: own})[0]) for own in (rows, rows[:1]))
        if not np.allclose(whole[:1], alone, atol=1e-5):
            raise UserError(f"The {kind} tower in ONNX depends on the size of the batch.")
        found[kind] = torch.tensor(whole)
    _write_inputs(encoder, folder)
    return difference(probed, found["image"], found["text"])


def _export(tower: nn.Module, rows: Tensor, name: str, path: Path) -> None:
    for loud in ("torch.onnx", "onnxscript"):
        logging.getLogger(loud).setLevel(logging.ERROR)
    shapes: dict[str, Any] = {name: {0: torch.export.Dim("batch", min=1)}}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                tower,
                (rows[:2],),  # of one row, torch would take the size for a constant
                path,
                input_names=[name],
                output_names=["features"],
                dynamic_shapes=shapes,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"This tower cannot be written as ONNX: {first_line(error)}.") from None


def _write_inputs(encoder: DualEncoder, folder: Path) -> None:
    """Write how pictures and captions are prepared, and how cosines become logits."""
    told = encoder.config["preprocess_cfg"]
    bias = encoder.logit_bias
    about = {
        "pixels": {
            "height": encoder.image_size[0],
            "width": encoder.image_size[1],
            "resize_mode": told.get("resize_mode", "shortest"),
            "interpolation": told.get("interpolation", "bicubic"),
            "normalise": "inside the file",
        },
        "tokens": {
            "length": encoder.tokenizer.length,
            "tokenizer": encoder.config["model_cfg"]["text_cfg"].get("hf_tokenizer_name")
            or "CLIP's byte pairs (open_clip.SimpleTokenizer)",
        },
        "logits": {
            "scale": encoder.logit_scale.exp().item(),
            "bias": None if bias is None else bias.item(),
            "probability": "sigmoid" if encoder.is_sigmoid else "softmax",
        },
    }
    (folder / "preprocess.json").write_text(json.dumps(about, indent=1) + "\n")
    save_text_files(encoder, folder)
