"""A contact sheet: pictures in rows, each with a line or two of text, as one PNG."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vlp.errors import UserError

TILE = 128
"""Side of a picture on the sheet, in pixels."""
LINE = 14
CAPTION_LINES = 3


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[tuple[Image.Image, str]]]], path: Path
) -> None:
    """Write a PNG: each row a title and its pictures, each picture with its caption below.

    Folders that are missing are made, as for every output.

    Raises:
        UserError: The file cannot be written, or is not called ``.png``.
    """
    if path.is_dir() or path.suffix.lower() != ".png":
        raise UserError(f"The contact sheet {path} is a PNG. Write --sheet sheet.png.")
    columns = max((len(pictures) for _, pictures in rows), default=1) or 1
    width = columns * (TILE + 12) + 12
    height = sum(_row_height(title) for title, _ in rows) + 12
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    top = 12
    for title, pictures in rows:
        if title:
            draw.text((12, top), title, fill="black", font=ImageFont.load_default(size=14))
        y = top + (22 if title else 0)
        for column, (picture, caption) in enumerate(pictures):
            _paste(sheet, picture, 12 + column * (TILE + 12), y)
            lines = textwrap.wrap(caption, 22)[:CAPTION_LINES]
            for number, line in enumerate(lines):
                place = (12 + column * (TILE + 12), y + TILE + 4 + number * LINE)
                draw.text(place, line, fill="#444444", font=font)
        top += _row_height(title)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, format="PNG")
    except OSError as error:
        raise UserError(f"Cannot write the contact sheet {path}: {error.strerror}.") from None


def _row_height(title: str) -> int:
    return TILE + CAPTION_LINES * LINE + 12 + (22 if title else 0)


def _paste(sheet: Image.Image, picture: Image.Image, x: int, y: int) -> None:
    """Paste a picture into its tile, whole and centred; small ones grow with sharp pixels."""
    ratio = TILE / max(picture.size)
    side = Image.Resampling.NEAREST if ratio > 1 else Image.Resampling.BICUBIC
    size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
    left, top = x + (TILE - size[0]) // 2, y + (TILE - size[1]) // 2
    sheet.paste(picture.resize(size, side), (left, top))
    frame = (left - 1, top - 1, left + size[0], top + size[1])
    ImageDraw.Draw(sheet).rectangle(frame, outline="#dddddd")
