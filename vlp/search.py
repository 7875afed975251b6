"""A text or an image to the nearest pictures of an index."""

import os
from pathlib import Path
from typing import Any

from vlp.checkpoint import encoder_hash, load_encoder
from vlp.console import one_line, show, show_table
from vlp.contact_sheet import contact_sheet
from vlp.encode import encode_images, encode_texts, to_best_device
from vlp.encoder import DualEncoder
from vlp.errors import UserError
from vlp.image import decode, open_image
from vlp.index import Index, load_index
from vlp.types import Hit

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def search(
    folder: Path, query: str, *, k: int = 5, model: str | None = None, sheet: Path | None = None
) -> list[dict[str, Any]]:
    """Show the k pictures nearest to a text, or to an image where ``query`` names a file.

    Raises:
        UserError: There is no such index, or the model is not the one that made its features.
    """
    if k < 1:
        raise UserError(f"k is {k}. Ask for 1 hit or more.")
    if not query.strip():
        raise UserError("The query is empty. Write a text, or the path of an image.")
    if os.path.isdir(query):
        raise UserError(f"The query {query} is a folder. Write a text, or the path of an image.")
    index = load_index(folder)
    encoder = open_encoder(index, model)
    if _is_image(query):
        features = encode_images(encoder, [open_image(query)])
    else:
        features = encode_texts(encoder, [query])
    hits = index.hits(features[0].numpy(), k)
    rows = [(f"{hit.score:.3f}", hit.key, one_line(hit.metadata["caption"])) for hit in hits]
    show_table(["cosine", "key", "caption"], rows)
    if sheet:
        pictures = [(decode(index.picture(hit)), _label(hit)) for hit in hits]
        contact_sheet([(query, pictures)], sheet)
        show(f"The pictures are in {sheet}.")
    return [{"key": hit.key, "score": hit.score, **hit.metadata} for hit in hits]


def open_encoder(index: Index, model: str | None = None) -> DualEncoder:
    """Return the encoder that made an index's features.

    Raises:
        UserError: The model is gone, or its weights are others than when the features were made.
    """
    try:
        encoder = to_best_device(load_encoder(model or index.model))
    except UserError as error:
        raise UserError(f"{error} The index names {index.model}; --model names another.") from None
    if encoder_hash(encoder) != index.model_hash:
        raise UserError(
            f"The index was built with another model than {model or index.model} as it is now. "
            f"Run `vlp embed` and `vlp index` again, or name the right one with --model."
        )
    return encoder


def _is_image(query: str) -> bool:
    return query.lower().endswith(IMAGE_SUFFIXES) or os.path.isfile(query)


def _label(hit: Hit) -> str:
    return f"{hit.score:.2f} {hit.metadata['caption']}"
