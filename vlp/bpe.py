"""CLIP's byte pair encoding, with each chunk of text between spaces encoded once."""

import copy
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

MAX_CHUNKS = 1 << 17  # 131,072 chunks: about 20 MB of English, 180 MB at the very worst
MAX_CHUNK_CHARACTERS = 32
ID_BYTES = 8


class Bpe:
    """Turns captions into the ids that open_clip's ``SimpleTokenizer`` gives, in less time.

    No token of CLIP's pattern goes over a space and none looks past its own end, so that a chunk
    between spaces has the same ids in every caption. They are remembered as the bytes of int64:
    a caption is then its chunks joined, and a batch its captions joined.

    Args:
        tokenizer: A ``SimpleTokenizer`` that cleans by ``lower``, with no special tokens of its
            own and no reduction mask. It is copied, and the copy's cache stays empty.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._clean = tokenizer.clean_fn
        self._start = array("q", [tokenizer.sot_token_id]).tobytes()
        self._end = array("q", [tokenizer.eot_token_id]).tobytes()
        self._ids = _ChunkIds(tokenizer)

    def __call__(
        self, captions: Sequence[str], length: int
    ) -> tuple[Int[Tensor, "captions length"], Bool[Tensor, "captions"]]:
        """Return the ids of each caption, ended and padded with 0, and whether its end was cut."""
        width = length * ID_BYTES
        find = self._ids.__getitem__
        rows = [
            b"".join((self._start, *map(find, self._chunks(caption)), self._end))
            for caption in captions
        ]
        cut = [len(row) > width for row in rows]
        padded = [
            row[: width - ID_BYTES] + self._end if is_cut else row.ljust(width, b"\0")
            for row, is_cut in zip(rows, cut, strict=True)
        ]
        ids = torch.frombuffer(bytearray().join(padded), dtype=torch.int64)  # [captions * length]
        return ids.view(-1, length), torch.tensor(cut)

    def _chunks(self, caption: str) -> list[str]:
        # Cleaning takes 28 us a caption and all else 2 to 3 (one CPU core). Of ASCII it changes
        # control characters and HTML entities only.
        if caption.isascii() and caption.isprintable() and "&" not in caption:
            return caption.lower().split()
        return self._clean(caption).split()


class _ChunkIds(dict[str, bytes]):
    """Clean chunk -> the bytes of its ids; works out what it lacks.

    A full one forgets everything: words come by Zipf's law, so that the common ones are back within
    a few batches, and a hit costs no bookkeeping.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self._tokenizer = copy.copy(tokenizer)
        # open_clip's own cache has no bound, and holds the special tokens from the start.
        self._special = frozenset(tokenizer.decoder[i] for i in tokenizer.all_special_ids)
        self._tokenizer.cache = _Nothing()

    def __missing__(self, chunk: str) -> bytes:
        tokens = self._tokenizer.pat.findall(chunk)
        # A token alone is a chunk of itself, and is remembered too: "dog" of "dog," and "dog's".
        ids = self._encode(chunk) if tokens == [chunk] else b"".join(map(self.__getitem__, tokens))
        if len(chunk) <= MAX_CHUNK_CHARACTERS:
            if len(self) >= MAX_CHUNKS:
                self.clear()
            self[chunk] = ids
        return ids

    def _encode(self, token: str) -> bytes:
        spelled = "".join(map(self._tokenizer.byte_encoder.__getitem__, token.encode()))
        is_special = spelled in self._special
        parts = [spelled] if is_special else self._tokenizer.bpe(spelled).split(" ")
        return array("q", map(self._tokenizer.encoder.__getitem__, parts)).tobytes()


class _Nothing(dict[str, str]):
    """A cache that keeps nothing."""

    def __setitem__(self, key: str, value: str) -> None:
        pass
