"""Commands on a model and an index."""

from pathlib import Path
from typing import Any, Literal


def index(
    features: Path, index: Path, /, model: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Build an exact nearest-neighbour index over the features of images.

    Args:
        features: Folder that ``vlp embed`` or clip-retrieval wrote.
        index: Folder to write.
        model: The model that made the features, where that is not written beside them.
        overwrite: Replace what another command or config wrote.
    """
    from vlp.index import build_index

    return build_index(features, index, model=model, overwrite=overwrite)


def search(
    index: Path, query: str, /, k: int = 5, model: str | None = None, sheet: Path | None = None
) -> list[dict[str, Any]]:
    """Find the images nearest to a text or to an image file.

    Args:
        index: Folder that ``vlp index`` wrote.
        query: Any text, or the path of an image file.
        k: How many images to show.
        model: The model that made the features, where it has moved since.
        sheet: PNG file for a contact sheet of what was found.
    """
    from vlp.search import search as run

    return run(index, query, k=k, model=model, sheet=sheet)


def export(
    model: str,
    out: Path,
    /,
    to: Literal["open_clip", "transformers", "onnx"] = "open_clip",
    average: tuple[str, ...] = (),
    weights: tuple[float, ...] = (),
    alpha: float | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a model, or an average of several, for open_clip, transformers or ONNX, and check it.

    `vlp export RUN OUT --average last=5` averages the newest checkpoints of a run, `--average RUN_B
    RUN_C` is a uniform soup of three models, and `--average start --alpha 0.5` lies half way
    between a fine-tuned model and what it started from (WiSE-FT).

    Args:
        model: Run folder, checkpoint folder, or a model that open_clip knows.
        out: Folder to write.
        to: ``open_clip``; ``transformers``, where the architecture maps to CLIPModel or
            SiglipModel; ``onnx``, a file for each tower (extra ``export``).
        average: More models of the same architecture; or one word: ``last=5``, the newest
            checkpoints of the run, as they are without a moving average; ``start``, what the run
            was fine-tuned from.
        weights: Share of each model, MODEL first, divided by their sum; none: all the same.
        alpha: Share of MODEL, from 0 to 1, where there is one other.
        overwrite: Replace what another config wrote.
    """
    from vlp.export import export as run

    return run(
        model, out, to=to, average=average, weights=weights, alpha=alpha, overwrite=overwrite
    )
