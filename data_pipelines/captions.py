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

    def positives(self, sample: "Sample") -> set[str]:
        """Return the keys of all captions of a sample: of each line and entry, and the main one."""
        names = {"txt", *(name for chain in self.chains for name in chain)}
        values = [sample.text if name == "txt" else sample.metadata.get(name) for name in names]
        return {caption_key(text) for value in values for text in _all_of(value)}


def _all_of(value: Any) -> list[str]:
    """Return the entries of a list, or the lines of a text, that are captions on their own."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [text for entry in value if (text := _text_of(entry).strip())]
    # Only at line feeds: web captions hold other separators, which are white space.
    return [line for text in _text_of(value).split("\n") if (line := text.strip())]


def _one_of(value: Any, rng: np.random.Generator) -> str:
    """Return a caption drawn from the lines of a text or the entries of a list; "" for none."""
    texts = _all_of(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        count = int(rng.integers(1, len(texts) + 1)) if texts else 0
        return " ".join(texts[i] for i in rng.permutation(len(texts))[:count])
    if len(texts) > 1:
        return texts[int(rng.integers(len(texts)))]
    return texts[0] if texts else ""


def _text_of(value: Any) -> str:
    """Return a text or a number as a caption; "" for what is none, NaN of a table among it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if isinstance(value, str) or (is_number and math.isfinite(value)) else ""
