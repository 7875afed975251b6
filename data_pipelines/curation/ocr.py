"""Text in pictures, found and read once for all filters that look at it. The one door to rapidocr.

Its models come inside its wheel; nothing is fetched.
"""

from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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


def reader_identity() -> str:
    """Return what changes when the models change, which come with rapidocr."""
    _reader()
    return f"rapidocr {version('rapidocr')} {SIDE}"


@lru_cache
def _reader() -> Any:
    """Return the reader, loaded once in a process; it computes in one thread."""
    with needs("filters", "Reading text in pictures takes rapidocr and onnxruntime"):
        import onnxruntime  # noqa: F401
        import rapidocr
    folder = Path(rapidocr.__file__).parent / "models"
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
