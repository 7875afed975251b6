"""Text in pictures, found and read once for all filters that look at it. The one door to rapidocr.

Its models come inside its wheel; nothing is fetched.
"""

from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from data_pipelines.curation.candidates import Candidate
from vlp.errors import UserError, needs

SIDE = 736
"""Pixels of the longer side that text is looked for at; smaller pictures are not enlarged, which
would take ten times as long."""
MODELS = {"Det": "*det*.onnx", "Cls": "*cls*.onnx", "Rec": "*rec*.onnx"}


class Text(NamedTuple):
    """A line of text in a picture."""

    text: str
    confidence: float
    """In [0, 1]; what is read with less than 0.5 is left out."""
    corners: list[tuple[float, float]]
    """Four, in pixels of the upright picture."""


def read_texts(candidate: Candidate) -> list[Text]:
    """Return the lines of text in the picture of a candidate, from the top."""
    if ("rapidocr", "texts") not in candidate.features:
        pixels = np.asarray(candidate.picture)[..., ::-1]  # rapidocr takes BGR
        found = _reader()(np.ascontiguousarray(pixels))
        texts = []
        if found.boxes is not None and found.txts is not None:
            for text, confidence, box in zip(found.txts, found.scores, found.boxes, strict=True):
                texts.append(Text(text, float(confidence), [tuple(corner) for corner in box]))
        candidate.features["rapidocr", "texts"] = texts
    return candidate.features["rapidocr", "texts"]


def text_mask(candidate: Candidate) -> Bool[np.ndarray, "height width"]:
    """Return which pixels of the picture of a candidate lie in a line of text."""
    mask = Image.new("1", candidate.picture.size)
    for text in read_texts(candidate):
        ImageDraw.Draw(mask).polygon(text.corners, fill=1)
    return np.asarray(mask)


def without_texts(candidate: Candidate) -> Image.Image:
    """Return the picture of a candidate, each line of text filled with the mean colour about it."""
    masked = candidate.picture.copy()
    pixels, is_text = np.asarray(candidate.picture), text_mask(candidate)
    for text in read_texts(candidate):
        xs, ys = zip(*text.corners, strict=True)
        margin = max(2, round((max(ys) - min(ys)) / 4))
        rows = slice(max(0, int(min(ys)) - margin), int(max(ys)) + margin + 1)
        columns = slice(max(0, int(min(xs)) - margin), int(max(xs)) + margin + 1)
        near = pixels[rows, columns][~is_text[rows, columns]]  # [pixels, 3]
        colour = near.mean(axis=0) if len(near) else pixels.mean(axis=(0, 1))
        fill = tuple(round(level) for level in colour.tolist())
        ImageDraw.Draw(masked).polygon(text.corners, fill=fill)
    return masked


def reader_identity() -> str:
    """Return what changes when the models change, which come with rapidocr, or what runs them."""
    _reader()
    import onnxruntime

    return f"rapidocr {version('rapidocr')} onnxruntime {onnxruntime.__version__} {SIDE}"


@lru_cache
def _reader() -> Any:
    """Return the reader, loaded once in a process; it computes in one thread."""
    with needs("filters", "Reading text in pictures takes rapidocr and onnxruntime"):
        import onnxruntime  # noqa: F401
        import rapidocr
    folder = Path(str(rapidocr.__file__)).parent / "models"
    options: dict[str, Any] = {
        "Global.log_level": "critical",
        "EngineConfig.onnxruntime.intra_op_num_threads": 1,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        "Det.limit_type": "max",
        "Det.limit_side_len": SIDE,
    }
    for part, pattern in MODELS.items():
        found = sorted(folder.glob(pattern))
        if not found:
            raise UserError(f"The installed rapidocr lacks {pattern}. Install rapidocr 3.10.")
        options[f"{part}.model_path"] = str(found[0])
    return rapidocr.RapidOCR(params=options)
