"""What a teacher is given of a sample to read, or has already said of it on disk."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from data_pipelines.faults import SampleFault
from vlp.errors import UserError
from vlp.features import StoredFeatures
from vlp.tokenizer import Tokenizer


class TeacherInput(NamedTuple):
    """How a teacher reads a sample: what it sees is the first view, at its own size.

    A teacher is to be imitated on what the student sees: the same crop with the same changes, and
    the same caption (Beyer et al. 2021, arXiv:2106.05237, section 3; MobileCLIP, Vasu et al. 2023,
    arXiv:2311.17049, section 4.1; CLIP-KD, Yang et al. 2023, arXiv:2307.12732). So of its own
    transform the size holds here, and its mean and deviation in its encoder. Costs a resize, of a
    size other than the student's, and a tokenisation for each sample.
    """

    image_size: tuple[int, int]
    tokenizer: Tokenizer


def stored_pair(features: StoredFeatures, key: str, caption: str) -> Float[np.ndarray, "2 dim"]:
    """Return the image and the text feature of a sample with this caption.

    Raises:
        SampleFault: There are none, or they are not finite.
        UserError: There are some, of another caption.
    """
    row = features.row(key, caption)
    if row is None and features.has([key])[0]:
        raise UserError(
            f"{features.folder} has features of another caption of {key} than {caption[:60]!r}. "
            f"Read the one caption that was embedded, --data.captions txt, or give a model as "
            f"--teacher."
        )
    if row is None:
        raise SampleFault("the teacher has no features of it")
    pair = features.pair(row)
    if not np.isfinite(pair).all() or not pair.any(axis=1).all():
        raise SampleFault("the teacher's features are not finite, or 0")
    return pair
