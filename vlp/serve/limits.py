"""What one client may ask of the service: bytes, seconds, and requests at once.

A pure ASGI layer around the routes. It reads each body itself, whole, before the request takes a
place, so that a client that sends slowly keeps nobody else out.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlp.errors import UserError

FREE = ("/health", "/ready", "/metrics")
"""Paths that are answered however much there is to do."""
DISCARDED = 4
"""Times the largest body that is read and thrown away, so that a client hears why it was too large:
one whose bytes are left unread is cut off before it reads the answer."""
HEADER_SECONDS = 10.0
"""By when a client has sent the header of a request, once it has begun."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is refused."""

    body_bytes: int = 24 << 20
    """Of one request: a picture of 18 MB in base64."""
    bodies_bytes: int = 256 << 20
    """Of all requests that are being read."""
    pixels: int = 50_000_000
    """Of an uploaded picture; from its header."""
    concurrent: int = 64
    """Requests at work or waiting for the model."""
    seconds: float = 30.0
    """From the header of a request to the end of its body, and from there to its answer's."""

    def __post_init__(self) -> None:
        for option, given, least in (
            ("--max-megapixels", self.pixels / 1_000_000, 1e-6),
            ("--concurrent", self.concurrent, 1),
            ("--timeout", self.seconds, 0.01),
        ):
            if not given >= least:
                raise UserError(
                    f"A service with {option} {given:g} answers nothing. Give {least:g} or more."
                )


class Refused(Exception):
    """A request that is not answered; the reason is a sentence for who sent it."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason

    def response(self) -> JSONResponse:
        """Return the answer."""
        headers = {"Retry-After": "1"} if self.status in (429, 503) else {}
        return JSONResponse({"error": self.reason}, self.status, headers)


class Guard:
    """Lets a request through to the routes if it keeps to the limits, and ends it if it does not.

    Args:
        app: The routes.
        limits: What is refused.
        check: Raises Refused where a request may not be made at all.
        finished: Is told path, status and seconds of every request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        check: Callable[[Scope], None],
        finished: Callable[[Scope, int, float], None],
    ) -> None:
        self._app, self._limits, self._check, self._finished = app, limits, check, finished
        self.at_work = 0
        self._body_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether another request would be refused."""
        return self.at_work >= self._limits.concurrent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._answer(scope, receive, noting)
        except Refused as refused:
            if not status:  # else the client has a part of the answer, and is cut off
                await refused.response()(scope, receive, noting)
        finally:
            self._finished(scope, status or 499, time.perf_counter() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check(scope)
        with self._room_for_bodies() as take:
            try:
                async with asyncio.timeout(self._limits.seconds):
                    body = await self._read(receive, take)
            except TimeoutError:
                raise Refused(408, "The request did not arrive in time.") from None
            if body is None:  # the client has hung up
                return
            with self._place(scope["path"]):
                try:
                    async with asyncio.timeout(self._limits.seconds):
                        await self._run(scope, body, receive, send)
                except TimeoutError:
                    raise Refused(503, "The answer took too long. Try again later.") from None

    async def _read(self, receive: Receive, take: Callable[[int], None]) -> bytes | None:
        """Return the body, or None where the client hung up before its end."""
        parts, length, most = [], 0, self._limits.body_bytes
        is_more = True
        while is_more and length <= DISCARDED * most:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            is_more, length = message.get("more_body", False), length + len(part)
            if length <= most:
                take(len(part))
                parts.append(part)
        if length > most:
            raise Refused(413, f"The request is larger than {most:,} bytes.")
        return b"".join(parts)

    @contextmanager
    def _room_for_bodies(self) -> Iterator[Callable[[int], None]]:
        """Yield what takes room for bytes of a body; it is given back when the block ends."""
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            if self._body_bytes + count > self._limits.bodies_bytes:
                raise Refused(429, "Too much is being uploaded. Try again later.")
            taken += count
            self._body_bytes += count

        try:
            yield take
        finally:
            self._body_bytes -= taken

    @contextmanager
    def _place(self, path: str) -> Iterator[None]:
        if path in FREE:
            yield
            return
        if self.is_full:
            raise Refused(429, "Too many requests at once. Try again later.")
        self.at_work += 1
        try:
            yield
        finally:
            self.at_work -= 1

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Run the routes; give the work up when the client hangs up."""
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        work = asyncio.ensure_future(self._app(scope, replay, send))
        gone = asyncio.ensure_future(receive())  # after the body comes only the end
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            gone.cancel()
            work.cancel()


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1 that closes connections on which the header of a request does not arrive."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read what came; wait on where it was not a whole header."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering:
            self._stop_watching()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
