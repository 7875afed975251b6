"""What filters say of the samples of one shard while it is scored: values and faults."""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from data_pipelines.curation.candidates import Candidate
from data_pipelines.curation.rules import Filter, Value
from data_pipelines.curation.table_rows import Rows, Said
from data_pipelines.faults import SampleFault
from vlp.batches import batches
from vlp.image import ImageError

BATCH_SIZE = 256
"""Samples that a filter sees at once."""
DECODED = 16
"""Of these, pictures that are decoded at a time."""
OK, FAILED = "ok", "failed: "
Mask = Bool[np.ndarray, "_"]
Pair = tuple[int, Candidate]
"""A sample and its row."""


class Sheet:
    """New values and faults of one shard, by column and row."""

    def __init__(self, filters: Mapping[str, Filter], missing: Mapping[str, Mask]) -> None:
        self.filters, self.missing = filters, missing
        self.seconds: dict[str, float] = {}
        self._single: dict[str, dict[int, Value | SampleFault]] = {name: {} for name in missing}
        self._rows: dict[str, list[tuple[np.ndarray, pa.Array, pa.Array]]] = {}
        """Of rows that were scored together: their places, values and status."""

    def fill(self, pairs: Iterable[Pair]) -> None:
        """Score some samples."""
        for some in batches(pairs, BATCH_SIZE):
            self._fill(some, self.missing)

    def fill_rows(self, rows: Rows) -> None:
        """Score some rows of a table: at once where the filter can, else one after another."""
        single = set(self.missing)
        for name, mask in self.missing.items():
            is_asked, start = mask[rows.places], time.perf_counter()
            own = rows if is_asked.all() else rows.at(is_asked)
            said = _said(self.filters[name], own) if len(own) else None
            if said is not None:
                single.remove(name)
                self._rows.setdefault(name, []).append((own.places, *_columns(said, name)))
                self._add(name, start)
        if single:
            candidates = map(Candidate, rows.records())
            for some in batches(zip(rows.places.tolist(), candidates, strict=True), BATCH_SIZE):
                self._fill(some, single)

    def merged(self, name: str, values: pa.Array, status: pa.Array) -> tuple[pa.Array, pa.Array]:
        """Return the values and status of a column: those that were known, and the new ones."""
        told = self._single.get(name, {})
        parts = [*self._rows.get(name, []), *([_of_samples(told)] if told else [])]
        if not parts:
            return values, status.cast(pa.string())
        rows = np.concatenate([part[0] for part in parts])
        source = np.arange(len(values))
        source[rows] = len(values) + np.arange(len(rows))
        return (
            _joined([values, *(part[1] for part in parts)]).take(pa.array(source)),
            _joined([status, *(part[2] for part in parts)]).take(pa.array(source)),
        )

    def _fill(self, pairs: list[Pair], names: Collection[str]) -> None:
        """Score some samples; pictures are decoded few at a time, and once for all filters.

        What encodes pictures gets whole batches: they are prepared while they are decoded.
        """
        # In the order of the rules: who encodes first decides what is in a batch, to the last bit.
        names = [name for name in self.missing if name in names]
        seeing = [name for name in names if self.filters[name].needs_picture]
        encoding = [name for name in seeing if self.filters[name].models]
        for name in (name for name in names if name not in seeing):
            self._score(name, self._asked(name, pairs))
        for few in batches(pairs, DECODED) if seeing else ():
            for name in seeing:
                sighted = [pair for pair in self._asked(name, few) if self._sees(name, *pair)]
                if name not in encoding:
                    self._score(name, sighted)
            for _, one in few:
                one.forget_picture()
        for name in encoding:
            self._score(name, self._asked(name, pairs))

    def _asked(self, name: str, pairs: list[Pair]) -> list[Pair]:
        """Return those that a filter is asked about, less those that it failed on."""
        missing, known = self.missing[name], self._single[name]
        return [pair for pair in pairs if missing[pair[0]] and pair[0] not in known]

    def _sees(self, name: str, row: int, candidate: Candidate) -> bool:
        start = time.perf_counter()
        try:
            assert candidate.picture
            if models := self.filters[name].models:
                from data_pipelines.curation.features import prepare  # loads torch

                prepare(candidate, models)
            return True
        except (SampleFault, ImageError) as fault:
            self._single[name][row] = SampleFault(str(fault))
            return False
        finally:
            self._add(name, start)

    def _score(self, name: str, pairs: Sequence[Pair]) -> None:
        start = time.perf_counter()
        found = _values(self.filters[name], name, [one for _, one in pairs])
        for (row, _), value in zip(pairs, found, strict=True):
            self._single[name][row] = value
        self._add(name, start)

    def _add(self, name: str, start: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def _values(part: Filter, name: str, candidates: Sequence[Candidate]) -> list[Value | SampleFault]:
    """Return a value or a fault for each sample; a batch that fails is halved."""
    if not candidates:
        return []
    try:
        values = list(part.score(candidates))
    except (SampleFault, ImageError) as fault:
        if len(candidates) == 1:
            return [SampleFault(str(fault))]
        half = len(candidates) // 2
        return [
            *_values(part, name, candidates[:half]),
            *_values(part, name, candidates[half:]),
        ]
    assert len(values) == len(candidates), f"{name} gave {len(values)} for {len(candidates)}"
    # A value that is no number differs from itself; it would slip past every threshold.
    return [SampleFault(_no_number(name)) if v != v else v for v in values]


def _said(part: Filter, rows: Rows) -> Said | None:
    try:
        return part.score_rows(rows)
    except SampleFault as fault:  # a column is damaged
        return Said([], {str(fault): np.ones(len(rows), bool)})


def _of_samples(
    told: Mapping[int, Value | SampleFault],
) -> tuple[np.ndarray, pa.Array, pa.Array]:
    """Return the rows, the values and the status of samples that were scored one by one."""
    values = [None if isinstance(value, SampleFault) else value for value in told.values()]
    status = [f"{FAILED}{v}" if isinstance(v, SampleFault) else OK for v in told.values()]
    return np.fromiter(told, np.int64), _array(values), pa.array(status, pa.string())


def _columns(said: Said, name: str) -> tuple[pa.Array, pa.Array]:
    """Return values, null where there is a fault, and status of rows that were scored at once."""
    masks = list(said.faults.values())
    codes = np.zeros(len(masks[0]) if masks else len(said.values), np.int32)
    for code, mask in reversed(list(enumerate(masks, 1))):
        codes[mask] = code
    is_scored = codes == 0
    values = pa.array(said.values) if isinstance(said.values, np.ndarray) else _array(said.values)
    if pa.types.is_floating(values.type):
        is_none = np.isnan(values.to_numpy())
        values = pa.array(values.to_numpy(), mask=is_none)
        codes[np.flatnonzero(is_scored)[is_none]] = len(masks) + 1
    if not is_scored.all():
        values = values.take(pa.array(np.cumsum(is_scored) - 1, mask=~is_scored))
    reasons = [OK, *(f"{FAILED}{reason}" for reason in (*said.faults, _no_number(name)))]
    return values, pa.DictionaryArray.from_arrays(codes, reasons).cast(pa.string())


def _joined(arrays: Sequence[pa.Array]) -> pa.Array:
    """Return arrays as one; those without any value fit to any other."""
    tables = [pa.table({"values": own}) for own in arrays]
    return pa.concat_tables(tables, promote_options="permissive")["values"].combine_chunks()


def _array(values: Sequence[Value | None]) -> pa.Array:
    """Return values as a column; bytes are of one width."""
    first = next((value for value in values if value is not None), None)
    if not isinstance(first, bytes):
        return pa.array(values)
    return pa.array(values, pa.binary(len(first)))  # bytes of a filter are of one width


def _no_number(name: str) -> str:
    return f"{name} is no number"
