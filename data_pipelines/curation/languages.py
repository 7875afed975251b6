"""The languages of many captions at once, by py3langid's model. The one door to py3langid.

The model (Lui and Baldwin 2012, "langid.py") reads the bytes of a text by an automaton some of
whose states are features, and adds up what each feature says for each language: naive Bayes. Here
many captions are read side by side, which gives the same languages about nine times as fast.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.metadata import version

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from vlp.batches import batches
from vlp.errors import UserError, needs

TOGETHER = 8192
"""Captions that are read side by side."""
LONG = 1000
"""Bytes from which on a caption is read alone: few would be read beside it to its end."""
BLOCK = 3000
"""Features whose weights are added at a time, so that these stay in the processor's cache."""
ALIGNED = 32
"""Languages are rounded up to such a multiple: rows of weights begin where cache lines do."""


class LanguageModel:
    """Tells apart some languages, ISO 639 codes."""

    def __init__(self, among: Sequence[str]) -> None:
        with needs("filters", "The language of captions takes py3langid"):
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        self._single = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        try:
            self._single.set_languages(among)
        except ValueError as error:
            raise UserError(f"among={among}: {error}. Write ISO 639 codes, such as en.") from None
        self.languages = np.array(self._single.nb_classes, object)
        self._next = np.asarray(self._single.tk_nextmove)
        self._base = np.asarray(self._single.tk_row).astype(np.int64) << 8  # [states]
        self._feature = np.asarray(self._single.tk_output)  # [states], -1 for none
        count = len(self.languages)
        width = -(-count // ALIGNED) * ALIGNED
        self._weights = np.zeros((len(self._single.nb_ptc), width), np.float32)
        self._weights[:, :count] = self._single.nb_ptc
        self._prior = np.asarray(self._single.nb_pc, np.float32)

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, Float32[np.ndarray, "_"]]:
        """Return the likeliest language of each caption, and its probability among all here."""
        found = [self._of_batch(batch) for batch in batches(captions, TOGETHER)]
        if not found:
            return np.empty(0, object), np.empty(0, np.float32)
        return tuple(map(np.concatenate, zip(*found, strict=True)))  # pyright: ignore

    def _of_batch(self, captions: Sequence[str]) -> tuple[np.ndarray, Float32[np.ndarray, "_"]]:
        texts = [
            # What py3langid makes of most captions, said at once.
            caption.encode()
            if caption.isascii() and not caption.isupper()
            else self._single._encode(caption)
            for caption in captions
        ]
        length = np.array([len(text) for text in texts])
        # The longest first, so that those that are still being read are always the first ones.
        order = np.argsort(-length, kind="stable")
        order = order[length[order] <= LONG]
        scores = self._scores([texts[row] for row in order.tolist()])
        # py3langid's own calibration for texts of all lengths.
        scores /= np.sqrt(np.maximum(length[order], 1), dtype=np.float32)[:, None]
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        for one, other in self._single._alias_pairs:
            scores[:, one] += scores[:, other]
            scores[:, other] = 0
        best = scores.argmax(axis=1)
        languages, probability = np.empty(len(texts), object), np.empty(len(texts), np.float32)
        languages[order] = self.languages[best]
        probability[order] = scores[np.arange(len(best)), best]
        for row in np.flatnonzero(length > LONG).tolist():
            languages[row], probability[row] = self._single.classify(captions[row])
        return languages, probability

    def _scores(self, texts: Sequence[bytes]) -> Float32[np.ndarray, "texts languages"]:
        """Return for texts, the longest first, what their features say for each language."""
        width = self._weights.shape[1]
        scores = np.zeros((len(texts), width), np.float32)
        # 8192 texts with 100,053 features each fit into 32 bits, which are sorted twice as fast.
        keys = np.sort(np.concatenate([np.empty(0, np.uint32), *self._read(texts)]))
        is_new = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
        firsts = np.flatnonzero(is_new)
        ends = np.append(firsts[1:], len(keys))[: len(firsts)]
        times = np.log1p((ends - firsts).astype(np.float32))
        text, feature = np.divmod(keys[firsts].astype(np.int64), len(self._weights))
        starts = np.flatnonzero(np.diff(text, prepend=-1))
        rows = np.empty((BLOCK + LONG, width), np.float32)
        for some in _blocks(starts, len(text)):
            first, last = some[0], some[-1]
            own = rows[: last - first]
            np.take(self._weights, feature[first:last], axis=0, out=own, mode="clip")
            own *= times[first:last, None]
            scores[text[some[:-1]]] = np.add.reduceat(own, some[:-1] - first, axis=0)
        count = len(self._prior)
        scores[text[starts], :count] += self._prior  # a text without features says nothing
        return scores[:, :count]

    def _read(self, texts: Sequence[bytes]) -> Iterator[np.ndarray]:
        """Yield, byte by byte of all texts, text * number of features + feature."""
        length = np.array([len(text) for text in texts], np.int64)
        data: UInt8[np.ndarray, bytes] = np.frombuffer(b"".join(texts), np.uint8)
        start = np.cumsum(length) - length
        base = np.full(len(texts), self._base[0])
        for place in range(length[0] if len(texts) else 0):
            count = int(np.searchsorted(-length, -place))  # texts that are longer than this
            state = self._next.take(base[:count] + data.take(start[:count] + place))
            base[:count] = self._base.take(state)
            feature = self._feature.take(state)
            hit = np.flatnonzero(feature >= 0)
            yield (hit * len(self._weights) + feature[hit]).astype(np.uint32)


def _blocks(starts: Int64[np.ndarray, "texts"], total: int) -> Iterator[Int64[np.ndarray, "_"]]:
    """Yield where texts begin, and the last of them ends, so that each has ``BLOCK`` features.

    One text, of at most ``LONG`` features, may go beyond.
    """
    ends = np.append(starts, total)
    first = 0
    while first < len(starts):
        last = int(np.searchsorted(ends, ends[first] + BLOCK))
        last = min(max(last, first + 1), len(starts))
        yield ends[first : last + 1]
        first = last


@lru_cache
def language_model(among: tuple[str, ...]) -> LanguageModel:
    """Return the model for some languages, loaded once in a process; it is small.

    Raises:
        UserError: It is not installed, or does not know a language.
    """
    return LanguageModel(among)


def language_identity() -> str:
    """Return the version of py3langid, whose model comes with it."""
    return f"py3langid {version('py3langid')}"
