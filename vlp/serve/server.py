"""``vlp serve``: the index and its model are loaded, then the port is opened."""

import socket
from pathlib import Path

import uvicorn

from vlp.console import show
from vlp.errors import UserError, first_line
from vlp.index import load_index
from vlp.search import open_encoder
from vlp.serve.access import Access, choose_token, is_loopback
from vlp.serve.app import create_app
from vlp.serve.limits import ImpatientProtocol, Limits
from vlp.serve.metrics import Metrics
from vlp.serve.service import Service

CONNECTIONS = 1024
"""Open at once."""
STOP_SECONDS = 60
"""What is under way when the service is told to stop has so long to end."""


def serve(
    folder: Path,
    *,
    host: str,
    port: int,
    token: str | None,
    model: str | None,
    remembered: int,
    limits: Limits,
) -> None:
    """Answer requests until SIGTERM or Ctrl-C; what is under way then is finished.

    Raises:
        UserError: There is no such index or model, the port cannot be had, or fewer than no texts
            are to be remembered.
    """
    if remembered < 0:
        raise UserError(f"--remember {remembered} is no number of texts. Give 0 or more.")
    token = choose_token(host, token)
    listening = open_port(host, port)  # before the model: a port that is taken is said soon
    index = load_index(folder)
    encoder = open_encoder(index, model)
    metrics = Metrics()
    service = Service(folder, index, encoder, limits=limits, metrics=metrics, remembered=remembered)
    app = create_app(service, Access(host, token), limits, metrics)
    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    address = f"http://{_shown(host)}:{listening.getsockname()[1]}/"
    said = f"{folder}: {len(index)} pictures. Open {address}{_with(token)}"
    if not is_loopback(host):
        said += (
            "\nOthers reach it, and nothing is encrypted: on networks not yours, put it behind TLS."
        )
    AnnouncingServer(config, said).run(sockets=[listening])


class AnnouncingServer(uvicorn.Server):
    """Says where it is once it answers, and not before."""

    def __init__(self, config: uvicorn.Config, said: str) -> None:
        super().__init__(config)
        self._said = said

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port."""
        await super().startup(sockets)
        show(self._said)


def open_port(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address, and does not listen yet.

    Raises:
        UserError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Of a socket whose protocol is not named, asyncio leaves Nagle's algorithm on: 40 ms an answer.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        raise UserError(
            f"Cannot open {host}:{port}: {first_line(error)}. Give another --port (0: any that is "
            f"free) or --host."
        ) from None
    return found


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _with(token: str | None) -> str:
    return f"?token={token}" if token else ""
