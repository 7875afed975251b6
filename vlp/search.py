"""`vlp search`: texts, pictures and samples of an index to the nearest pictures of it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlp.batches import batches
from vlp.checkpoint import encoder_hash, load_encoder
from vlp.console import one_line, show, show_table, warn
from vlp.contact_sheet import contact_sheet
from vlp.encode import to_best_device
from vlp.encoder import DualEncoder
from vlp.errors import UserError
from vlp.image import ImageError, decode
from vlp.index import Index, load_index
from vlp.index.export import write_keep_list
from vlp.query import Query, find
from vlp.types import Hit

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

COLUMNS = 10
"""Pictures beside each other on a contact sheet."""


def search(
    folder: Path,
    queries: Sequence[str],
    *,
    weights: Sequence[float] = (),
    without: Sequence[str] = (),
    like: Sequence[str] = (),
    model: str | None = None,
    sheet: Path | None = None,
    export: Path | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Show the pictures nearest to texts, image files and samples, and return them as data.

    Args:
        folder: The index.
        queries: Texts, and paths of image files.
        weights: Of the queries, then of the keys; none: 1 each.
        without: Texts, and paths of image files, to stay away from.
        like: Keys of samples of the index.
        model: The model of the index, where it has moved.
        sheet: PNG file for a contact sheet.
        export: Folder for a keep-list of the hits.
        options: What else ``Query`` takes.

    Raises:
        UserError: There is no such index, or the model is not the one that made its features.
    """
    query = _query(queries, weights, without, like, options)
    index = load_index(folder)
    hits = find(index, open_encoder(index, model), query)
    if hits:
        _show(hits)
        if len(hits) < query.k:
            show(f"{len(hits)} hits, and {query.k} were asked for: there are no more.")
    else:
        show("Nothing was found: the conditions, the percentile or the offset leave nothing.")
    if sheet:
        rows = list(batches([(_picture(index, hit), _label(hit)) for hit in hits], COLUMNS))
        title = " + ".join([*queries, *like])
        contact_sheet([(title, rows[0] if rows else []), *(("", row) for row in rows[1:])], sheet)
        show(f"The pictures are in {sheet}.")
    if export:
        write_keep_list(index, hits, export)
        show(f"The keep-list {export} names {len(hits)} samples.")
    return [
        {"key": hit.key, "score": hit.score, "percentile": hit.percentile}
        | ({"folded": hit.folded} if hit.folded else {})
        | hit.metadata
        for hit in hits
    ]


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


def _query(
    queries: Sequence[str],
    weights: Sequence[float],
    without: Sequence[str],
    like: Sequence[str],
    options: dict[str, Any],
) -> Query:
    """Return what the command line asks for."""
    asked = [*queries, *like]
    if weights and len(weights) != len(asked):
        raise UserError(
            f"There are {len(weights)} weights for {len(asked)} queries and keys. Give one each."
        )
    shares = dict(zip(range(len(asked)), weights or [1.0] * len(asked), strict=True))
    parts = [(text, shares[place]) for place, text in enumerate(queries)]
    parts += [(text, -1.0) for text in without]
    keys = [(key, shares[len(queries) + place]) for place, key in enumerate(like)]
    return Query(
        texts=tuple((text, weight) for text, weight in parts if not _is_image(text)),
        images=tuple((_read(path), weight) for path, weight in parts if _is_image(path)),
        keys=tuple(keys),
        **options,
    )


def _is_image(query: str) -> bool:
    if os.path.isdir(query):
        raise UserError(f"The query {query} is a folder. Write a text, or the path of an image.")
    return query.lower().endswith(IMAGE_SUFFIXES) or os.path.isfile(query)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"Cannot open the image {path}: {error.strerror}.") from None


def _show(hits: Sequence[Hit]) -> None:
    columns = ["cosine", "percentile", "key", "caption"]
    rows = [
        (
            f"{hit.score:.3f}",
            f"{hit.percentile:.2f}",
            hit.key + (f" (+{len(hit.folded)})" if hit.folded else ""),
            one_line(hit.metadata["caption"]),
        )
        for hit in hits
    ]
    show_table(columns, rows)


def _picture(index: Index, hit: Hit) -> Image.Image:
    """Return the picture of a hit; a grey one, with a warning, where it cannot be read any more."""
    try:
        return decode(index.picture(hit))
    except (UserError, ImageError) as error:
        warn(f"No picture of {hit.key}: {str(error).rstrip('.')}.")
        return Image.new("RGB", (1, 1), "lightgrey")


def _label(hit: Hit) -> str:
    return f"{hit.score:.2f} {hit.metadata['caption']}"
