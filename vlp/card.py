"""What cards of models and data are made of: Markdown, and names that may be published."""

import re
from collections.abc import Iterable
from pathlib import Path

from vlp.console import one_line

CARD = "README.md"
"""Where Hugging Face's hub looks for a card."""


def public_name(source: str) -> str:
    """Return the name of data as it may be published: no folders, logins, keys or commands."""
    if source.startswith("pipe:"):
        return "output of a command"
    place = re.sub(r"^(\w+://)[^/@]*@", r"\1", source).partition("?")[0]
    return place if "://" in place else Path(place.rstrip("/")).name or "shards"


def markdown_table(columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    """Return a table whose cells show as they are."""
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(map(plain, line))} |" for line in lines)


def plain(text: object) -> str:
    """Return a text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", one_line(str(text), 200))
