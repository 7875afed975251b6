"""The index as the service asks it."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vlp.errors import UserError
from vlp.index import Index
from vlp.serve.messages import Condition, FoundPicture, SearchRequest


class Library:
    """Pictures of an index by their rows."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.keys = index.metadata["key"].to_pylist()
        self.captions = index.metadata["caption"].to_pylist()
        self.fields = [json.loads(row or "{}") for row in index.metadata["metadata"].to_pylist()]
        self._row_of = {key: row for row, key in enumerate(self.keys)}

    def __len__(self) -> int:
        return len(self.keys)

    def feature(self, key: str) -> Float[np.ndarray, "dim"]:
        """Return the feature of a picture."""
        if key not in self._row_of:
            raise UserError(f"The index has no picture with the key {key[:80]!r}.")
        return self.index.faiss_index.reconstruct(self._row_of[key])

    def find(
        self, query: Float[np.ndarray, "dim"] | None, request: SearchRequest
    ) -> tuple[list[FoundPicture], bool]:
        """Return pictures, best first, and whether there are more."""
        if query is None:
            found = [(row, None, None) for row in range(len(self))]
        else:
            scores, rows = self.index.neighbours(query[None], len(self))
            shares = 100 * (1 - np.arange(len(self)) / len(self))
            found = list(zip(rows[0].tolist(), scores[0].tolist(), shares.tolist(), strict=True))
        least = request.min_percentile or 0
        found = [
            one
            for one in found
            if (one[2] is None or one[2] >= least) and self._fits(one[0], request.where)
        ]
        if request.sort:
            name = request.sort.removeprefix("-")
            is_down = request.sort.startswith("-")
            known = [one for one in found if self._value(one[0], name) is not None]
            known.sort(key=lambda one: self._value(one[0], name), reverse=is_down)
            found = known
        end = request.offset + request.k
        hits = [
            self.found(row).model_copy(update={"score": score, "percentile": share})
            for row, score, share in found[request.offset : end]
        ]
        return hits, end < len(found)

    def found(self, row: int) -> FoundPicture:
        """Return what is known of a picture."""
        return FoundPicture(
            row=row, key=self.keys[row], caption=self.captions[row], metadata=self.fields[row]
        )

    def encoded(self, row: int) -> bytes:
        """Return a picture as it lies in its shard."""
        return self.index.picture(self.index._hit(0.0, row))

    def _value(self, row: int, name: str) -> Any:
        if name in ("key", "caption"):
            return getattr(self, f"{name}s")[row]
        value = self.fields[row].get(name)
        return value if isinstance(value, int | float) else None

    def _fits(self, row: int, where: Sequence[Condition]) -> bool:
        for condition in where:
            value = self.fields[row].get(condition.field)
            values = value if isinstance(value, list) else [value]
            if condition.values is not None:
                if not set(map(str, values)) & set(map(str, condition.values)):
                    return False
            else:
                least = -np.inf if condition.least is None else condition.least
                most = np.inf if condition.most is None else condition.most
                if not any(isinstance(v, int | float) and least <= v <= most for v in values):
                    return False
        return True
