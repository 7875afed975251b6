"""Rules that were published together, by name: ``vlp filter RAW CLEAN --keep datacomp_basic``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
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
        needed, known = self.blanks() - set(self.defaults), self.blanks()
        if not needed <= set(options) <= known:
            told = [f"{name}={self.defaults.get(name, '...')!r}" for name in sorted(known)]
            raise UserError(f"The preset takes the options {', '.join(told) or 'none'}.")
        filled = {name: repr(value) for name, value in {**self.defaults, **options}.items()}
        return [text.format(**filled) for text in self.texts]

    def blanks(self) -> set[str]:
        """Return the names of the options."""
        return {name for text in self.texts for _, name, _, _ in Formatter().parse(text) if name}


PRESETS: dict[str, Preset] = {
    "align": Preset(
        (
            "image_side(min=201)",
            "captions_per_image",
            "caption_words(max=20)",
            "caption_frequency",
            "caption_ngrams(size={size})",
        ),
        "Jia et al. 2021, ALIGN, section 3",
        {"size": 100_000_000},
    ),
    "datacomp_basic": Preset(
        ("caption_words(min=3)", "caption_characters(min=6)", "image_side(min=200)", "language"),
        "Gadre et al. 2023, DataComp, appendix F: English by fastText, more than 2 words and 5 "
        "characters, shorter side at least 200 pixels, aspect at most 3",
        {},
    ),
    "datacomp_1b": Preset(
        (
            "language",
            "caption_words(min=2)",
            "caption_characters(min=6)",
            "image_clusters(model={model}, target={target})",
            "clip_score(model={model}, top=0.3)",
        ),
        "Gadre et al. 2023, DataComp-1B: captions in English of more than 1 word and 5 characters, "
        "pictures in clusters near ImageNet-1k's, the highest 30 % of the pool by OpenAI's "
        "ViT-L/14",
        {},
    ),
    "laion": Preset(
        (
            "caption_characters(min=5)",
            "image_bytes(min=5000)",
            "language",
            "exact_duplicate(by='pair')",
            "clip_score(model={model}, min={min})",
        ),
        "Schuhmann et al. 2022, LAION-5B, English part: 0.28 by OpenAI's ViT-B/32; LAION-400M has "
        "0.3, other languages 0.26. Equal pairs are found by URL there, by content here",
        {"min": 0.28},
    ),
    "decontaminate": Preset(
        ("evaluation_image(against={against})", "evaluation_caption(against={against})"),
        "pictures by PDQ, captions by runs of 8 words",
        {},
    ),
    "cat": Preset(
        (
            "caption_complexity(pipeline={pipeline})",
            "caption_action(pipeline={pipeline})",
            "text_spotting",
        ),
        "Radenovic et al. 2023, DiHT",
        {"pipeline": "en_core_web_sm"},
    ),
}
