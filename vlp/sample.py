"""A sample, in a file of its own: who reads shards need not wait seconds for torch."""

from dataclasses import dataclass, field
from typing import Any

MARK = "planted"
"""Metadata field of drawn samples that says what is wrong with one, or None: the answer to what a
filter is asked, which it never sees."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image-text pair, as a shard holds it."""

    key: str
    """Unique in its source; the member name without its extension, folders included."""
    image: bytes
    """Encoded JPEG, PNG or WebP."""
    text: str
    """The caption."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Everything else that the shard says of the pair: ``.json``, and ``.cls`` as ``cls``."""
