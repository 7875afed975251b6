"""Which of a sample's captions is read, and when two captions are the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from data_pipelines.faults import SampleFault
from vlp.errors import UserError

if TYPE_CHECKING:  # vlp.types loads torch, which a config does not need
    from vlp.types import Sample


Group = Literal["caption", "label", "image", "none"]
"""What makes two pairs match: an equal caption, class or image; ``none``: only a pair itself."""


def caption_key(caption: str) -> str:
    """Return what equal captions share: case and runs of white space make no difference."""
    return " ".join(caption.casefold().split())


@dataclass(frozen=True)
class CaptionChoice:
    """Where captions come from and how often: ``txt`` or fields of ``.json``, with weights."""

    fields: tuple[str, ...]
    weights: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> "CaptionChoice":
        """Read ``"txt"`` or ``"txt:0.7 keywords:0.3"``.

        Raises:
            UserError: A weight is no positive number.
        """
        fields, weights = [], []
        for part in text.split():
            name, _, weight = part.partition(":")
            try:
                weights.append(float(weight or 1))
            except ValueError:
                weights.append(0.0)
            fields.append(name)
        if not fields or min(weights) <= 0:
            raise UserError(
                f"Cannot read the captions {text!r}. Write fields with weights above 0, "
                f'such as "txt:0.7 keywords:0.3".'
            )
        return cls(tuple(fields), tuple(w / sum(weights) for w in weights))

    def draw(self, sample: "Sample", rng: np.random.Generator) -> str:
        """Return one caption; a field that the sample lacks gives way to its main caption.

        Of several lines, each a caption (CLIP_benchmark), one is drawn. A list, such as keywords,
        becomes a caption of one to all of its entries in random order.
        """
        name = self.fields[int(rng.choice(len(self.fields), p=self.weights))]
        value = None if name == "txt" else sample.metadata.get(name)
        lines = [line.strip() for line in sample.text.splitlines() if line.strip()] or [""]
        main = lines[int(rng.integers(len(lines)))] if len(lines) > 1 else lines[0]
        if isinstance(value, Sequence) and not isinstance(value, str) and value:
            count = int(rng.integers(1, len(value) + 1))
            value = " ".join(str(value[i]) for i in rng.permutation(len(value))[:count])
        caption = str(value or main)
        if not caption:
            raise SampleFault("no caption")
        return caption
