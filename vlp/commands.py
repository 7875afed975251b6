"""Commands on a model and an index."""

from pathlib import Path
from typing import Any


def index(features: Path, index: Path, /, overwrite: bool = False) -> dict[str, Any]:
    """Build an exact nearest-neighbour index over features.

    Args:
        features: Folder that ``vlp embed`` wrote.
        index: Folder to write.
        overwrite: Replace what another command or config wrote.
    """
    from vlp.index import build_index

    return build_index(features, index, overwrite=overwrite)


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


def classify(
    model: str,
    image: str,
    /,
    classes: tuple[str, ...],
    templates: tuple[str, ...] = ("a photo of a {}", "{}"),
) -> list[dict[str, Any]]:
    """Name what an image shows, zero-shot: each class name with its probability.

    A model trained with a softmax shares one probability among the names; a model trained with a
    sigmoid gives each name its own.

    Args:
        model: Run folder, checkpoint folder, or a model that open_clip knows.
        image: An image file.
        classes: The names to choose from.
        templates: Captions around a name; their features are averaged.
    """
    from vlp.classifier import classify as run

    return run(model, image, classes=classes, templates=templates)
