"""A model, or an average of several, as a folder for others."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from vlp.checkpoint import paths_of
from vlp.console import say, show
from vlp.encoder import DualEncoder
from vlp.output import output_folder
from vlp.soup import models_of, shares_of, soup

RECORD = "export.json"
"""Who wrote the folder: ``config.json`` is a file of Hugging Face's towers."""

Target = Literal["open_clip", "transformers", "onnx"]
LOADED_BY = {
    "open_clip": "open_clip loads it as local-dir:{out}",
    "transformers": "transformers loads it as AutoModel.from_pretrained({out!r})",
    "onnx": "onnxruntime loads {out}/image.onnx and {out}/text.onnx",
}


def export(
    model: str,
    out: Path,
    *,
    to: Target = "open_clip",
    average: Sequence[str] = (),
    weights: Sequence[float] = (),
    alpha: float | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a model into a folder that others load, check its features, and return what it is.

    Args:
        model: What ``load_encoder`` takes.
        out: Folder to write.
        to: Who is to load it.
        average: More models, ``last=5`` or ``start``, see ``vlp/soup.py``.
        weights: Share of each model, divided by their sum; none: all the same.
        alpha: Share of the first of two models.
        overwrite: Replace what another config wrote.

    Raises:
        UserError: The models do not go together, the form has no counterpart of the architecture,
            or ``out`` is another command's.
    """
    names = models_of(model, average)
    shares = shares_of(weights, alpha, len(names))
    told = {"models": names, "shares": shares, "to": to}
    inputs = paths_of(model, *names)
    with output_folder(
        out, "export", told, inputs=inputs, overwrite=overwrite, record=RECORD
    ) as folder:
        worst = _writer(to)(soup(names, shares), folder)
    for name, share in zip(names, shares, strict=True):
        say(f"  {share:.4g} x {name}")
    say(f"Wrote the model {out}. {LOADED_BY[to].format(out=str(out))}.")
    show(f"Features agree: on drawn pictures and captions they differ by at most {worst:.1e}.")
    return {"out": str(out), "largest_difference": worst, **told}


def _writer(to: Target) -> Callable[[DualEncoder, Path], float]:
    """Return what writes a form, its libraries loaded only when it is asked for."""
    if to == "transformers":
        from vlp.exports.transformers_folder import write_transformers

        return write_transformers
    if to == "onnx":
        from vlp.exports.onnx_files import write_onnx

        return write_onnx
    from vlp.exports.open_clip_folder import write_open_clip

    return write_open_clip
