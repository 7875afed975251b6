"""Boxes of pictures, such as faces, made unrecognisable while clean shards are written."""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFilter

from data_pipelines.tar_index import IMAGE_EXTENSIONS
from vlp.errors import UserError
from vlp.image import ImageError, decode

MARGIN, SIGMA = 0.1, 0.1
"""How far a box is widened on each side, and how wide the blur is, as shares of its diagonal."""
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpg": ("JPEG", {"quality": 95}),
    "jpeg": ("JPEG", {"quality": 95}),
    "webp": ("WEBP", {"quality": 95}),
    "png": ("PNG", {}),
}
"""By extension, how a picture that is changed is encoded again."""


class Box(NamedTuple):
    """Left, top, right, bottom of the upright picture, as shares of its width and height."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Blur:
    """Blurs the boxes that a field of the metadata holds; what has none stays byte for byte.

    A field is what DataComp's ``face_bboxes`` is, and what img2dataset's ``bbox_col`` takes: a list
    of (left, top, right, bottom) in [0, 1].
    """

    field: str

    def __call__(self, members: dict[str, Any], place: str) -> dict[str, Any]:
        """Return the files of a sample, its picture encoded again if it has boxes.

        Args:
            members: By extension.
            place: For the message of an error.

        Raises:
            UserError: A box is none, or the picture cannot be decoded or encoded.
        """
        boxes = self.boxes(members, place)
        extension = next((name for name in members if name in IMAGE_EXTENSIONS), None)
        if not boxes or extension is None:
            return members
        if extension not in FORMATS:
            raise UserError(
                f"{place}: a .{extension} cannot be blurred. Pictures with boxes must be "
                f"{', '.join(FORMATS)}."
            )
        try:
            picture = blurred(decode(members[extension]), boxes)
        except ImageError as error:
            raise UserError(
                f"{place}: the {error}, so it cannot be blurred. Add the rule decodable."
            ) from None
        name, options = FORMATS[extension]
        data = io.BytesIO()
        picture.save(data, name, **options)
        return {**members, extension: data.getvalue()}

    def boxes(self, members: dict[str, Any], place: str) -> list[Box]:
        """Return the boxes of a sample, by its ``.json``.

        Raises:
            UserError: A box is none.
        """
        found = json.loads(members.get("json") or b"{}").get(self.field) or []
        try:
            boxes = [Box(*map(float, box)) for box in found]
            # Detectors' boxes reach a little beyond the border; those in pixels reach far.
            is_share = all(-1 <= side <= 2 for box in boxes for side in box)
            if is_share and all(b.left <= b.right and b.top <= b.bottom for b in boxes):
                return boxes
        except (TypeError, ValueError):
            pass
        raise UserError(
            f"{place}: {self.field} is {json.dumps(found)[:60]}. Boxes are lists of left, top, "
            f"right and bottom in [0, 1]."
        )


def blurred(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """Return a picture with boxes blurred, softly at their borders.

    As ImageNet's faces were (Yang et al. 2022, section 4): each box is widened by a tenth of its
    diagonal, and one Gaussian, a tenth of the largest diagonal wide, blurs picture and mask.
    """
    mask, largest = Image.new("L", picture.size), 0.0
    for box in boxes:
        left, right = box.left * picture.width, box.right * picture.width
        top, bottom = box.top * picture.height, box.bottom * picture.height
        diagonal = math.hypot(right - left, bottom - top)
        margin, largest = MARGIN * diagonal, max(largest, diagonal)
        corners = (left - margin, top - margin, right + margin, bottom + margin)
        ImageDraw.Draw(mask).rectangle(corners, fill=255)
    soft = ImageFilter.GaussianBlur(SIGMA * largest)
    return Image.composite(picture.filter(soft), picture, mask.filter(soft))
