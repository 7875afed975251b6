"""Features of candidates by models that filters name; each picture and caption is encoded once."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.files import read_once
from vlp.checkpoint import encoder_hash, load_encoder
from vlp.encode import encode_texts, to_best_device
from vlp.encoder import DualEncoder


def model_hash(model: str) -> str:
    """Return what changes when a model changes."""
    return encoder_hash(_encoder(model))


def prepare(candidate: Candidate, models: Sequence[str]) -> None:
    """Make what the image towers of models take, while the picture is decoded."""
    for model in models:
        if model not in candidate.pixels and (model, "image") not in candidate.features:
            candidate.pixels[model] = _encoder(model).transform(candidate.picture)


def image_features(
    model: str, candidates: Sequence[Candidate]
) -> Float[np.ndarray, "candidates dim"]:
    """Return the image features of candidates by a model: fp32, unit-length rows."""
    new = [one for one in candidates if (model, "image") not in one.features]
    if new:
        for one in new:
            prepare(one, (model,))
        _put(model, "image", new, _encoded(model, [one.pixels.pop(model) for one in new]))
    return np.stack([one.features[model, "image"] for one in candidates])


def text_features(
    model: str, candidates: Sequence[Candidate]
) -> Float[np.ndarray, "candidates dim"]:
    """Return the features of the captions of candidates by a model: fp32, unit-length rows."""
    new = [one for one in candidates if (model, "text") not in one.features]
    if new:
        texts = [one.text for one in new]
        _put(model, "text", new, encode_texts(_encoder(model), texts).numpy())
    return np.stack([one.features[model, "text"] for one in candidates])


def picture_features(
    model: str, pictures: Sequence[Image.Image]
) -> Float[np.ndarray, "pictures dim"]:
    """Return the features of pictures that are no candidate's own: fp32, unit-length rows."""
    return _encoded(model, [_encoder(model).transform(picture) for picture in pictures])


@torch.no_grad()
def _encoded(model: str, pixels: Sequence[torch.Tensor]) -> Float[np.ndarray, "pictures dim"]:
    encoder = _encoder(model)
    rows = encoder(images=torch.stack(list(pixels)).to(encoder.logit_scale.device)).image
    assert rows is not None
    return rows.float().cpu().numpy()


def _put(model: str, kind: str, candidates: Sequence[Candidate], rows: np.ndarray) -> None:
    for one, row in zip(candidates, rows, strict=True):
        one.features[model, kind] = row


@read_once
def _encoder(model: str) -> DualEncoder:
    """Return a model, loaded once in a process."""
    return to_best_device(load_encoder(model)).eval()
