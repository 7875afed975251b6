"""Who may ask, and what a browser may do with the answers."""

import hmac
import ipaddress
import os
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlp.errors import UserError
from vlp.serve.limits import Refused

COOKIE = "vlp_token"
OPEN = ("/", "/docs", "/health", "/ready", "/openapi.json")
"""Paths that tell nothing about the pictures; so do the files of the page."""
PAGE_FILES = "/page/"
SHORTEST_TOKEN = 16
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    # Nothing of another host, no script or style but the files of the page, and no text that
    # becomes markup, whatever captions and class names hold.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; manifest-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a service that is bound to the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def choose_token(host: str, token: str | None) -> str | None:
    """Return the token that requests must bring: the given one, VLP_TOKEN's, or a new one.

    None, where nobody but this machine reaches the service and none was given.

    Raises:
        UserError: The token is too short, or no text that a header carries.
    """
    token = token or os.environ.get("VLP_TOKEN") or None
    if token is None:
        return None if is_loopback(host) else secrets.token_urlsafe(24)
    if len(token) < SHORTEST_TOKEN or not set(token) <= _TOKEN_SIGNS:
        raise UserError(
            f"The token must be {SHORTEST_TOKEN} or more of the signs A-Z a-z 0-9 _ -. "
            f"Leave --token out, and one is made."
        )
    return token


_TOKEN_SIGNS = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


class Access:
    """Refuses requests without the token, or that another web site lets a browser make.

    Args:
        host: What the service is bound to.
        token: None: none is asked for.
    """

    def __init__(self, host: str, token: str | None) -> None:
        self._token = token
        # A web site may give its own name the address 127.0.0.1 (DNS rebinding); a browser then
        # sends that name. Behind a token no name is of use.
        self._names = LOOPBACK_NAMES if is_loopback(host) and token is None else None

    def check(self, scope: Scope) -> None:
        """Raise Refused unless the request may be made."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._names is not None and _name(host) not in (*self._names, None):
            raise Refused(403, "This service answers to localhost and 127.0.0.1 only.")
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != host:
            raise Refused(403, "Another web site may not ask.")
        path = scope["path"]
        if self._token is None or path in OPEN or path.startswith(PAGE_FILES):
            return
        if not self.is_token(_bearer(headers) or _cookie(headers)):
            raise Refused(
                401, "Send the token that `vlp serve` printed, as `Authorization: Bearer TOKEN`."
            )

    def is_token(self, given: str) -> bool:
        """Return whether it is the token, in a time that tells nothing about it."""
        return self._token is not None and hmac.compare_digest(
            given.encode("utf-8", "replace"), self._token.encode()
        )


class SafeHeaders:
    """Adds to every answer what keeps a browser from doing more with it than the page needs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def adding(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        await self._app(scope, receive, adding)


def _name(host: str) -> str | None:
    """Return the name in a Host header; None where there is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _bearer(headers: Headers) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _cookie(headers: Headers) -> str:
    # Cookies are a host's, whatever the port: what other services left there is as it is, and
    # Python's own parser gives up on all of them where one is odd.
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
