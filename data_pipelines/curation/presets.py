"""Rules that were published together, by name: ``vlp filter RAW CLEAN --keep datacomp_basic``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlp.errors import UserError


@dataclass(frozen=True)
class Preset:
    """Rules in their order; ``{model}`` and other blanks are filled in by the options."""

    texts: tuple[str, ...]
    source: str
    defaults: Mapping[str, Any]

    def rules(self, options: Mapping[str, Any]) -> Sequence[str]:
        """Return the rules with the options filled in.

        Raises:
            UserError: An option is missing, or no rule has it.
        """
        known = {name for name in self.blanks() if name not in self.defaults}
        missing, foreign = known - set(options), set(options) - set(self.blanks())
        if missing or foreign:
            raise UserError(
                f"The preset takes the options {', '.join(sorted(self.blanks())) or 'none'}; got "
                f"{', '.join(options) or 'none'}."
            )
        filled = {name: repr(value) for name, value in {**self.defaults, **options}.items()}
        return [text.format(**filled) for text in self.texts]

    def blanks(self) -> set[str]:
        """Return the names of the options."""
        from string import Formatter

        return {name for text in self.texts for _, name, _, _ in Formatter().parse(text) if name}


PRESETS: dict[str, Preset] = {}
