"""What a filter is, and the rules that a person writes with filters.

A filter is one file in ``data_pipelines/filters``: a frozen dataclass that scores samples and says
which stay. A rule is a filter with its options, ``"clip_score(model='run/', top=0.3)"``, or
``"any_of(parts=('caption_words(min=3)', 'image_side(min=500)'))"``, or the name of a preset.
"""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.columns import Column, Columns, check_share, cutoff
from data_pipelines.curation.presets import PRESETS
from data_pipelines.curation.table_rows import Rows, Said
from vlp.errors import UserError
from vlp.spec import build_part, names, parse

FAMILY = "data_pipelines.filters"
ANY_OF = "any_of"

Value = float | int | str | bytes | list[int]
"""Of one sample; bytes are of one width in a column, such as a hash or a feature."""


class Cost(IntEnum):
    """What a score costs; dearer scores are of samples that cheaper rules left."""

    RECORD = 0
    """Caption, metadata, the header or the bytes of the picture: microseconds."""
    PICTURE = 1
    """Decoded pixels: milliseconds."""
    MODEL = 2
    """An encoder, a parser."""
    READING = 3
    """Text found and read in the picture."""


class Filter(ABC):
    """A part that scores samples and, over the whole set, says which stay."""

    cost: ClassVar[Cost] = Cost.RECORD
    needs_picture: ClassVar[bool] = False
    """Whether it looks at pixels: samples that cannot be decoded fail, and it never sees them."""
    deciding: ClassVar[tuple[str, ...]] = ()
    """Fields that change the decision and not the score, so that another value needs no scoring."""

    @property
    def is_pointwise(self) -> bool:
        """Whether what happens to a sample follows from its own score alone."""
        return False

    @property
    def needs_pool(self) -> bool:
        """Whether the decision looks at the scores of all samples, those that fell before too."""
        return False

    @property
    def models(self) -> tuple[str, ...]:
        """Models whose image towers see the pictures, so that they are prepared while decoded."""
        return ()

    def identity(self) -> str:
        """Return what changes when a model or file changes that the score follows from."""
        return ""

    @abstractmethod
    def score(self, candidates: Sequence[Candidate]) -> Sequence[Value]:
        """Return a value for each sample, whatever other samples there are.

        Raises:
            SampleFault: A sample cannot be scored; so does an ImageError. The others are then
                scored one by one.
        """

    def score_rows(self, rows: Rows) -> Said | None:
        """Return what ``score`` says of many rows of a table, at once.

        None where it can only say it of one after another.
        """
        return None

    @abstractmethod
    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield for each column which of its rows stay: bool, or the number of copies.

        Only rows in ``Column.left`` count; what is said of others is not heard.
        """


@dataclass(frozen=True, kw_only=True)
class BoundedFilter(Filter):
    """A filter that keeps the samples whose number lies between bounds, both included."""

    deciding: ClassVar[tuple[str, ...]] = ("min", "max", "top", "of")
    min: float | None = None
    """Smallest number that stays."""
    max: float | None = None
    """Largest number that stays."""
    top: float | tuple[float, float] | None = None
    """Share that stays, the highest numbers, in (0, 1]; ties stay too. Two shares are a band:
    ``(0.02, 0.3)`` drops the highest 2 % and keeps the rest of the highest 30 %."""
    of: Literal["pool", "left"] = "pool"
    """What ``top`` is a share of: every sample that could be scored, whatever rules stand before
    this one (Gadre et al. 2023, DataComp), or the samples that they left."""

    def __post_init__(self) -> None:
        if self.min is self.max is self.top is None:
            raise UserError("without min, max or top every sample stays. Write one, as top=0.3.")
        for share in self._shares():
            check_share(share, "top")
        if sorted(set(self._shares())) != list(self._shares()):
            raise UserError(f"top={self.top} is no band. Write the smaller share first.")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise UserError(f"min={self.min} is above max={self.max}, so nothing could stay.")

    @property
    def is_pointwise(self) -> bool:
        """Whether there is no ``top``."""
        return self.top is None

    @property
    def needs_pool(self) -> bool:
        """Whether ``top`` is a share of all samples."""
        return self.top is not None and self.of == "pool"

    def keep(self, columns: Columns) -> Iterator[np.ndarray]:
        """Yield which samples are within the bounds and in the top share."""
        low, high = self.bounds(columns)
        for column in columns:
            yield (column.numbers >= low) & (column.numbers <= high)

    def bounds(self, columns: Columns) -> tuple[float, float]:
        """Return the least and the largest number that stay."""
        low = -np.inf if self.min is None else self.min
        high = np.inf if self.max is None else self.max
        shares = self._shares()
        if shares:
            pool = _Pool(columns, self.of)
            low = max(low, cutoff(pool, shares[-1]))
            if len(shares) == 2:
                high = min(high, cutoff(pool, shares[0], below=True))
        return low, high

    def _shares(self) -> tuple[float, ...]:
        if self.top is None:
            return ()
        return self.top if isinstance(self.top, tuple) else (self.top,)


@dataclass(frozen=True)
class _Pool:
    """The numbers that a share is of, as often as they are walked."""

    columns: Columns
    of: str

    def __iter__(self) -> Iterator[np.ndarray]:
        return (column.numbers[self._of(column)] for column in self.columns)

    def _of(self, column: Column) -> np.ndarray:
        return column.left if self.of == "left" else column.is_scored


class Part(NamedTuple):
    """A filter and the column that its scores are in."""

    column: str
    filter: Filter


class Rule(NamedTuple):
    """What a person wrote: a filter, or several of which any may keep a sample."""

    text: str
    parts: tuple[Part, ...]

    @property
    def is_pointwise(self) -> bool:
        """Whether what happens to a sample follows from its own scores alone."""
        return all(part.filter.is_pointwise for part in self.parts)


def read_rules(keep: Sequence[str]) -> list[Rule]:
    """Return the rules that the texts are, such as ``"caption_words(min=3)"``.

    Raises:
        UserError: There is none, or one cannot be built.
    """
    if not keep:
        raise UserError(f'There is no rule. Give --keep "caption_words(min=3)". {_known()}')
    texts = [own for text in keep for own in _expanded(text)]
    return [_read_rule(text) for text in texts]


def parts_of(rules: Sequence[Rule]) -> dict[str, Filter]:
    """Return the filters of some rules by their columns."""
    return {part.column: part.filter for rule in rules for part in rule.parts}


def column_name(name: str, part: Filter) -> str:
    """Return the column of a filter: its name, and the options that change its score.

    ``exact_duplicate`` and ``exact_duplicate(by='caption')`` are two columns,
    ``caption_words(min=3)`` and ``caption_words(max=20)`` are one.
    """
    options = [
        f"{option}={value!r}"
        for option, value in scoring_options(part).items()
        if value != getattr(type(part), option, None)
    ]
    return f"{name}({', '.join(options)})" if options else name


def scoring_options(part: Filter) -> dict[str, Any]:
    """Return the fields that change the score of a filter."""
    return {name: value for name, value in vars(part).items() if name not in part.deciding}


def _expanded(text: str) -> Sequence[str]:
    """Return the rules of a preset, with its options filled in, or the rule itself."""
    name, options = parse(text)
    if name not in PRESETS:
        return (text,)
    try:
        return PRESETS[name].rules(options)
    except UserError as error:
        raise UserError(f"{text}: {error}") from None


def _read_rule(text: str) -> Rule:
    try:
        name, options = parse(text)
        texts = _parts(options) if name == ANY_OF else [text]
        return Rule(text, tuple(_read_part(own) for own in texts))
    except UserError as error:
        raise UserError(str(error) if text in str(error) else f"{text}: {error}") from None


def _parts(options: Mapping[str, Any]) -> Sequence[str]:
    parts = options.get("parts")
    is_list = isinstance(parts, tuple | list) and all(isinstance(part, str) for part in parts)
    if not parts or not is_list or len(options) > 1:
        raise UserError("Write any_of(parts=('caption_words(min=3)', 'image_side(min=200)')).")
    return tuple(parts)


def _read_part(text: str) -> Part:
    name, options = parse(text)
    own = names(FAMILY)
    if "." not in name and name not in own:
        raise UserError(f"There is no filter called {name!r}. {_nearest(name)}")
    part = build_part(FAMILY, name, options)
    if not isinstance(part, Filter):
        raise UserError(f"{text} is no filter. {_nearest(name)}")
    return Part(column_name(name, part), part)


def _nearest(name: str) -> str:
    known = [*names(FAMILY), ANY_OF, *PRESETS]
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]}?" if close else _known()


def _known() -> str:
    """Return one line that names every filter and preset."""
    return f"Filters: {', '.join([*names(FAMILY), ANY_OF])}. Presets: {', '.join(PRESETS)}."
