"""A model, or an average of several, as a folder for others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlp.checkpoint import paths_of, save_encoder
from vlp.console import say
from vlp.output import output_folder
from vlp.soup import models_of, shares_of, soup

RECORD = "export.json"
"""Who wrote the folder: ``config.json`` is a file of Hugging Face's towers."""


def export(
    model: str,
    out: Path,
    *,
    average: Sequence[str] = (),
    weights: Sequence[float] = (),
    alpha: float | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a model into a folder that open_clip loads as ``local-dir:``, and return what it is.

    Args:
        model: What ``load_encoder`` takes.
        out: Folder to write.
        average: More models, ``last=5`` or ``start``, see ``vlp/soup.py``.
        weights: Share of each model, divided by their sum; none: all the same.
        alpha: Share of the first of two models.
        overwrite: Replace what another config wrote.

    Raises:
        UserError: The models do not go together, or ``out`` is another command's.
    """
    names = models_of(model, average)
    shares = shares_of(weights, alpha, len(names))
    told = {"models": names, "shares": shares}
    inputs = paths_of(model, *names)
    with output_folder(
        out, "export", told, inputs=inputs, overwrite=overwrite, record=RECORD
    ) as folder:
        save_encoder(soup(names, shares), folder)
    for name, share in zip(names, shares, strict=True):
        say(f"  {share:.4g} x {name}")
    say(f"Wrote the model {out}. open_clip loads it as local-dir:{out}.")
    return {"out": str(out), **told}
