"""The routes: what is asked becomes a call of the service, what it says becomes an answer."""

import mimetypes
import secrets
from functools import partial
from pathlib import Path
from typing import Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from vlp.console import one_line
from vlp.errors import UserError
from vlp.image import ImageError
from vlp.serve.access import COOKIE, Access, SafeHeaders
from vlp.serve.download import MEDIA_TYPES
from vlp.serve.limits import Guard, Limits, Refused
from vlp.serve.messages import (
    About,
    ClassifyAnswer,
    ClassifyRequest,
    DownloadRequest,
    EmbedAnswer,
    EmbedRequest,
    FoundPicture,
    Number,
    SearchAnswer,
    SearchRequest,
)
from vlp.serve.metrics import Metrics
from vlp.serve.service import Service

PAGE = Path(__file__).parent / "page"
CHUNK = 1 << 20
"""Bytes of a download that are in memory at a time."""
MOST_SIGNS = 300
"""Of a reason: it may name what was sent."""


def create_app(service: Service, access: Access, limits: Limits, metrics: Metrics) -> ASGIApp:
    """Return the service over HTTP."""
    app = FastAPI(
        title="vlp serve",
        description="Search and zero-shot classification over the pictures of an index.",
        docs_url=None,  # FastAPI's pages load scripts of other hosts; ours is /docs
        redoc_url=None,
    )
    guard = Guard(app, limits=limits, check=access.check, finished=metrics.finished)
    _add_questions(app, service)
    _add_pictures(app, service)
    _add_state(app, service, guard, metrics)
    _add_page(app, access)
    _add_reasons(app)
    return SafeHeaders(guard)


def _add_questions(app: FastAPI, service: Service) -> None:
    @app.post("/search", response_model=SearchAnswer)
    async def search(request: SearchRequest) -> Response:
        """Find the pictures nearest to texts, images, pictures of the index or features."""
        return _json(await service.search(request))

    @app.post("/classify", response_model=ClassifyAnswer)
    async def classify(request: ClassifyRequest) -> Response:
        """Name what a picture shows, zero-shot: each class name with its probability."""
        return _json(await service.classify(request))

    @app.post("/embed", response_model=EmbedAnswer)
    async def embed(request: EmbedRequest) -> Response:
        """Return the features of texts and images."""
        return _json(await service.embed(request))


def _json(answer: BaseModel) -> Response:
    """Return an answer as it is: FastAPI would check it again, field by field."""
    content = answer.model_dump_json(by_alias=True)
    return Response(content, media_type="application/json")


def _add_pictures(app: FastAPI, service: Service) -> None:
    # A browser keeps pictures and asks whether they hold: after the next start, the same address
    # may be another index's.
    stamp = f'"{secrets.token_hex(8)}"'

    @app.get("/pictures/{number}")
    async def picture(number: Number) -> FoundPicture:
        """Return what is known of a picture of the index."""
        return service.about_picture(number)

    @app.get("/pictures/{number}/{size}", response_class=Response)
    async def pixels(
        request: Request, number: Number, size: Literal["thumbnail", "large"]
    ) -> Response:
        """Return a picture of the index as a JPEG, made small."""
        headers = {"Cache-Control": "private, no-cache", "ETag": stamp}
        if request.headers.get("if-none-match") == stamp:
            return Response(status_code=304, headers=headers)
        encoded = await service.picture(number, size)
        return Response(encoded, media_type="image/jpeg", headers=headers)

    @app.post("/download", response_class=Response)
    async def download(request: DownloadRequest) -> Response:
        """Return pictures of the index as a zip file, or a list of them."""
        file = await service.download(request)
        return StreamingResponse(
            iter(partial(file.read, CHUNK), b""),
            media_type=MEDIA_TYPES[request.kind],
            background=BackgroundTask(file.close),
        )


def _add_state(app: FastAPI, service: Service, guard: Guard, metrics: Metrics) -> None:
    @app.get("/about")
    async def about() -> About:
        """Return what is served, and what it can be filtered by."""
        return await service.about()

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Answer, as long as the process can."""
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"description": "As many requests as may be are at work."}})
    async def ready() -> Response:
        """Say whether another request would be taken."""
        status = "busy" if guard.is_full else "ready"
        return JSONResponse({"status": status}, 503 if guard.is_full else 200)

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Return what was done so far, in Prometheus' form."""
        metrics.at_work.set(guard.at_work)
        return metrics.response()


def _add_page(app: FastAPI, access: Access) -> None:
    # Read once: no name that a client writes is ever looked up on the disk.
    files = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.is_file()}

    def file(name: str) -> Response:
        if name not in files:
            raise Refused(404, "There is no such file of the page.")
        media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        headers = {"Cache-Control": "no-cache"}
        return Response(files[name], media_type=media_type, headers=headers)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(token: str | None = None) -> Response:
        if token is None:
            return file("index.html")
        if not access.is_token(token):
            raise Refused(401, "That is another token than `vlp serve` printed.")
        answer = RedirectResponse("/", 303)  # so that the token leaves the address
        answer.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        return answer

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return file("docs.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        return file(name)


def _add_reasons(app: FastAPI) -> None:
    """Give every answer that is none a reason, as ``{"error": ...}``."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return error.response()

    @app.exception_handler(UserError)
    @app.exception_handler(ImageError)
    async def mendable(_: Request, error: Exception) -> Response:
        return Refused(422, one_line(str(error), MOST_SIGNS)).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return Refused(422, _what_is_wrong(error)).response()

    @app.exception_handler(HTTPException)
    async def no_route(_: Request, error: HTTPException) -> Response:
        said = f"{error.detail}. /docs lists what can be asked, and how."
        return JSONResponse({"error": said}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return Refused(500, "The service failed; its log says why.").response()


def _what_is_wrong(error: RequestValidationError) -> str:
    """Return the first thing that is wrong with a body, without what was sent."""
    first = error.errors()[0]
    is_whole = first["loc"] == ("body",) and first["type"] != "value_error"
    if is_whole or first["type"] == "json_invalid":
        return "The body must be a JSON object. Send it with `Content-Type: application/json`."
    place = one_line(".".join(str(part) for part in first["loc"] if part != "body"))
    said = first["msg"].removeprefix("Value error, ")
    return f"{place}: {said}." if place else f"{said}."
