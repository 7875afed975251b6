"""What the service does with an index and its encoder; how it is asked stands in app.py."""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from vlp.classifier import check_distinct, check_names, check_templates, probabilities
from vlp.encoder import DualEncoder
from vlp.index import Index
from vlp.serve.batching import Images, Texts
from vlp.serve.download import packed
from vlp.serve.fields import fields_about
from vlp.serve.library import Library
from vlp.serve.limits import Limits, Refused
from vlp.serve.messages import (
    About,
    ClassAnswer,
    ClassifyAnswer,
    ClassifyRequest,
    DownloadRequest,
    EmbedAnswer,
    EmbedRequest,
    FoundPicture,
    SearchAnswer,
    SearchRequest,
    Term,
)
from vlp.serve.metrics import Metrics
from vlp.serve.pictures import Thumbnails, uploaded

Made = TypeVar("Made")


class Service:
    """An index and its encoder at work for many requests.

    Args:
        folder: Of the index.
        index: That is searched.
        encoder: That made its features.
        limits: What an upload may be.
        metrics: That count the work.
        remembered: Texts whose features are kept.
    """

    def __init__(
        self,
        folder: Path,
        index: Index,
        encoder: DualEncoder,
        *,
        limits: Limits,
        metrics: Metrics,
        remembered: int = 10_000,
    ) -> None:
        self._folder, self._encoder, self._limits = folder, encoder, limits
        self._library = Library(index)
        self._texts = Texts(
            encoder,
            remembered=remembered,
            count=metrics.batch("text"),
            count_hits=metrics.remembered.inc,
        )
        self._images = Images(encoder, count=metrics.batch("image"))
        self._thumbnails = Thumbnails(self._library.encoded)
        self._threads = ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 2))
        self._about: About | None = None
        metrics.pictures.set(len(index))

    async def search(self, request: SearchRequest) -> SearchAnswer:
        """Return pictures that were found."""
        began = time.perf_counter()
        texts = await self._texts.features([term.text for term in request.terms if term.text])
        images = await self._image_features(request.terms)
        given = (self._stacked(texts), self._stacked(images))
        hits, more = await self._in_thread(self._library.find, request, *given)
        return SearchAnswer(hits=hits, more=more, milliseconds=1000 * (time.perf_counter() - began))

    async def classify(self, request: ClassifyRequest) -> ClassifyAnswer:
        """Return every class name with its probability."""
        check_names(request.classes)
        check_distinct(request.classes)
        check_templates(request.templates)
        if request.key:
            feature = torch.from_numpy(self._library.feature(request.key))[None]  # [1, dim]
        else:
            term = Term(image=request.image, vector=request.vector)
            feature = torch.stack(await self._image_features([term]))  # [1, dim]
        weights = await self._texts.classifier(request.classes, request.templates)
        cosines = (feature @ weights.T)[0].tolist()
        shares = probabilities(self._encoder, feature, weights)[0].tolist()
        rows = zip(request.classes, shares, cosines, strict=True)
        answers = [
            ClassAnswer(**{"class": name}, probability=share, cosine=cosine)
            for name, share, cosine in sorted(rows, key=lambda row: -row[2])
        ]
        kind = "sigmoid" if self._encoder.is_sigmoid else "softmax"
        return ClassifyAnswer(classes=answers, kind=kind)

    async def embed(self, request: EmbedRequest) -> EmbedAnswer:
        """Return features of texts and images."""
        if not all(text.strip() for text in request.texts):
            raise Refused(422, "A text is empty.")
        texts = await self._texts.features(request.texts)
        images = await self._image_features([Term(image=image) for image in request.images])
        return EmbedAnswer(
            texts=[row.tolist() for row in texts], images=[row.tolist() for row in images]
        )

    async def picture(self, number: int, size: str) -> bytes:
        """Return a picture of the index, made small."""
        return await self._in_thread(self._thumbnails, number, size)

    def about_picture(self, number: int) -> FoundPicture:
        """Return what is known of a picture of the index."""
        return self._library.found(number)

    async def download(self, request: DownloadRequest) -> IO[bytes]:
        """Return a file of selected pictures, to be closed when it was sent."""
        return await self._in_thread(packed, self._library, request.ids, request.kind)

    async def about(self) -> About:
        """Return what is served."""
        if self._about is None:
            self._about = await self._in_thread(self._find_out)
        return self._about

    def _find_out(self) -> About:
        return About(
            name=self._folder.resolve().name,
            model=Path(self._library.index.model).name,
            pictures=len(self._library),
            dim=self._encoder.dim,
            fields=fields_about(self._library.columns()),
        )

    async def _image_features(self, terms: Sequence[Term]) -> list[Float[Tensor, "dim"]]:
        """Return the unit-length rows of terms that are images or vectors, in their order."""
        sent = [term.image for term in terms if term.image]
        pixels = [await self._in_thread(self._pixels, image) for image in sent]
        encoded = iter(await self._images.features(pixels))
        return [
            next(encoded) if term.image else self._given(term.vector)
            for term in terms
            if term.image or term.vector
        ]

    def _given(self, vector: list[float] | None) -> Float[Tensor, "dim"]:
        row = torch.tensor(vector)
        if len(row) != self._encoder.dim or not 0 < row.norm() < torch.inf:
            raise Refused(422, f"A vector must have {self._encoder.dim} numbers, not all 0.")
        return F.normalize(row, dim=0)

    def _stacked(self, rows: list[Float[Tensor, "dim"]]) -> Float[np.ndarray, "rows dim"]:
        return torch.stack(rows).numpy() if rows else np.empty((0, self._encoder.dim), np.float32)

    def _pixels(self, image: str) -> UInt8[Tensor, "3 height width"]:
        return self._encoder.transform(uploaded(image, self._limits.pixels))

    async def _in_thread(self, work: Callable[..., Made], *given: Any) -> Made:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)
