"""Requests gathered into one forward pass of a tower; features of texts that were asked for before.

While a thread computes one batch, the next one gathers. Who has an answer often asks again at once,
so the next batch waits a moment for as many: eight clients then share a batch, in place of two
halves that each cost nearly as much. Where requests come one at a time, none waits.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vlp.classifier import class_captions, classifier_of
from vlp.encode import encode_pixels, encode_texts
from vlp.encoder import DualEncoder

PATIENCE = 0.8
"""Of the seconds that a batch took, the share that the next one waits at most."""
MOST_PATIENCE = 0.03
"""Seconds: of text towers on a CPU, where eight texts cost what two or three alone do."""

Item = TypeVar("Item")
Row = Float[Tensor, "dim"]


class Batcher(Generic[Item]):
    """Gathers items from requests into batches for one function, which runs in a thread of its own.

    An item whose request is over before its turn is left out.

    Args:
        compute: A row for each item of a batch.
        most: Items in a batch.
        count: Is told the size of each batch.
    """

    def __init__(
        self,
        compute: Callable[[list[Item]], Sequence[Row]],
        *,
        most: int,
        count: Callable[[float], object],
    ) -> None:
        self._compute, self._most, self._count = compute, most, count
        self._waiting: list[tuple[Item, asyncio.Future[Row]]] = []
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._hoped = 1
        self._are_enough = asyncio.Event()

    async def __call__(self, items: Sequence[Item]) -> list[Row]:
        """Return the row of each item, when the batches that they are in are done."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in items]
        self._waiting += zip(items, futures, strict=True)
        if len(self._waiting) >= self._hoped:
            self._are_enough.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await asyncio.gather(*futures)  # a request that is given up takes all of them along

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            wanted = [(item, future) for item, future in batch if not future.done()]
            if not wanted:
                continue
            self._count(len(wanted))
            began = loop.time()
            try:
                items = [item for item, _ in wanted]
                rows = await loop.run_in_executor(self._thread, self._compute, items)
            except Exception as error:  # each request says it
                for _, future in wanted:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), row in zip(wanted, rows, strict=True):
                if not future.done():
                    future.set_result(row)
            count = min(self._most, len(wanted) + len(self._waiting))
            await self._gather(count, loop.time() - began)

    async def _gather(self, count: int, seconds: float) -> None:
        """Wait a moment for so many items, after a batch that took so long."""
        self._hoped = count
        if len(self._waiting) < count > 1:
            self._are_enough.clear()
            with suppress(TimeoutError):
                patience = min(MOST_PATIENCE, PATIENCE * seconds)
                await asyncio.wait_for(self._are_enough.wait(), patience)


class Texts:
    """Features of texts, and classifiers made of them; the last ``remembered`` texts are kept.

    Args:
        encoder: Whose text tower it is.
        most: Texts in a batch.
        remembered: 0 encodes every text anew.
        count: Is told the size of each batch.
        count_hits: Is told how many texts of a request were remembered.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        *,
        most: int = 64,
        remembered: int = 10_000,
        count: Callable[[float], object],
        count_hits: Callable[[float], object],
    ) -> None:
        self._encoder, self._remembered, self._count_hits = encoder, remembered, count_hits
        self._rows: OrderedDict[str, Row] = OrderedDict()  # the one used longest ago comes first
        self._batcher = Batcher[str](self._encode, most=most, count=count)

    async def features(self, texts: Sequence[str]) -> list[Row]:
        """Return the unit-length row of each text."""
        known = {text: self._recall(text) for text in texts}
        new = [text for text, row in known.items() if row is None]
        self._count_hits(len(texts) - len(new))
        if new:
            known.update(zip(new, await self._batcher(new), strict=True))
        return [row for text in texts if (row := known[text]) is not None]

    async def classifier(
        self, names: Sequence[str], templates: Sequence[str]
    ) -> Float[Tensor, "classes dim"]:
        """Return what ``build_classifier`` does; captions that are remembered cost nothing."""
        captions = [caption for name in names for caption in class_captions(name, templates)]
        rows = dict(zip(captions, await self.features(captions), strict=True))
        return classifier_of(
            lambda asked: torch.stack([rows[one] for one in asked]), names, templates
        )

    def _recall(self, text: str) -> Row | None:
        row = self._rows.get(text)
        with suppress(KeyError):  # the tower's thread may have just forgotten it
            self._rows.move_to_end(text)
        return row

    def _encode(self, texts: list[str]) -> Sequence[Row]:
        rows = encode_texts(self._encoder, texts)
        self._rows.update(zip(texts, rows, strict=True))
        while len(self._rows) > self._remembered:
            self._rows.popitem(last=False)
        return list(rows)


class Images:
    """Features of pictures that are as the image tower takes them."""

    def __init__(
        self, encoder: DualEncoder, *, most: int = 32, count: Callable[[float], object]
    ) -> None:
        self._encoder = encoder
        self._batcher = Batcher[UInt8[Tensor, "3 height width"]](
            self._encode, most=most, count=count
        )

    async def features(self, pixels: Sequence[UInt8[Tensor, "3 height width"]]) -> list[Row]:
        """Return the unit-length row of each picture."""
        return await self._batcher(pixels)

    def _encode(self, pixels: list[UInt8[Tensor, "3 height width"]]) -> Sequence[Row]:
        return list(encode_pixels(self._encoder, torch.stack(pixels)).features)
