"""Which of a sample's captions is read, and when two captions are the same."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data_pipelines.faults import SampleFault
from vlp.errors import UserError

if TYPE_CHECKING:  # vlp.types loads torch, which a config does not need
    from vlp.sample import Sample


Group = Literal["caption", "label", "image", "none"]
"""What makes two pairs match: an equal caption, class or image; ``none``: only a pair itself."""


def caption_key(caption: str) -> str:
    """Return what equal captions share: case and runs of white space make no difference."""
    return " ".join(caption.casefold().split())


@dataclass(frozen=True)
class CaptionChoice:
    """Where captions come from and how often.

    Each choice is a chain of fields in order of priority; ``txt`` is the main caption, any other
    name a field of ``.json``.
    """

    chains: tuple[tuple[str, ...], ...]
    weights: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> "CaptionChoice":
        """Read ``"txt"``, ``"txt:0.7 keywords:0.3"`` (by weight) or ``"recap>alt>txt"`` (priority).

        Raises:
            UserError: A weight is no positive number, or a field has no name.
        """
        chains, weights = [], []
        for part in text.split():
            names, _, weight = part.partition(":")
            try:
                weights.append(float(weight or 1))
            except ValueError:
                weights.append(0.0)
            chains.append(tuple(names.split(">")))
        is_share = all(0 < weight < math.inf for weight in weights)
        if not chains or not is_share or not all(all(chain) for chain in chains):
            raise UserError(
                f"Cannot read the captions {text!r}. Write fields with weights above 0, such as "
                f'"txt:0.7 keywords:0.3", or in order of priority, "recap>alt>txt".'
            )
        return cls(tuple(chains), tuple(w / sum(weights) for w in weights))

    @property
    def reads_main(self) -> bool:
        """Whether the main caption is ever read."""
        return any("txt" in chain for chain in self.chains)

    @property
    def is_plain(self) -> bool:
        """Whether no field of ``.json`` is ever read."""
        return all(chain == ("txt",) for chain in self.chains)

    def draw(self, sample: "Sample", rng: np.random.Generator) -> str:
        """Return one caption: of the drawn chain, or of another where a sample has none of it.

        Of several lines, each a caption (CLIP_benchmark), one is drawn. A list, such as keywords,
        becomes a caption of one to all of its entries in random order.

        Raises:
            SampleFault: The sample has none of the fields.
        """
        drawn = int(rng.choice(len(self.chains), p=self.weights)) if len(self.chains) > 1 else 0
        for chain in self.chains[drawn:] + self.chains[:drawn]:
            for name in chain:
                value = sample.text if name == "txt" else sample.metadata.get(name)
                caption = _one_of(value, rng)
                if caption:
                    return caption
        names = dict.fromkeys(name for chain in self.chains for name in chain)
        raise SampleFault("no caption" if self.is_plain else f"no caption in {', '.join(names)}")


def _one_of(value: Any, rng: np.random.Generator) -> str:
    """Return a caption drawn from the lines of a text or the entries of a list; "" for none."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = [text for entry in value if (text := _text_of(entry).strip())]
        count = int(rng.integers(1, len(value) + 1)) if value else 0
        return " ".join(value[i] for i in rng.permutation(len(value))[:count])
    # Only at line feeds: web captions hold other separators, which are white space.
    lines = [line for text in _text_of(value).split("\n") if (line := text.strip())]
    if len(lines) > 1:
        return lines[int(rng.integers(len(lines)))]
    return lines[0] if lines else ""


def _text_of(value: Any) -> str:
    """Return a text or a number as a caption; "" for what is none, NaN of a table among it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if isinstance(value, str) or (is_number and math.isfinite(value)) else ""
