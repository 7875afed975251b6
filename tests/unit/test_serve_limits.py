"""What keeps a service standing: limits on requests, who may ask, and batches of their work."""

import asyncio
import base64
import io
import socket
import time

import pyarrow as pa
import pytest
import torch
from bad_pictures import BAD
from PIL import Image
from tests_support import picture

from vlp.classifier import build_classifier
from vlp.encode import encode_texts
from vlp.errors import UserError
from vlp.image import decode
from vlp.serve import access, batching, pictures
from vlp.serve.access import Access, choose_token
from vlp.serve.batching import Batcher, Texts
from vlp.serve.fields import fields_about
from vlp.serve.limits import Guard, Limits, Refused
from vlp.serve.server import open_port, serve

SCOPE = {"type": "http", "path": "/search", "headers": []}


def counted():
    sizes = []
    return sizes, sizes.append


async def asked(guard, *messages, path="/search", before_end=None):
    """Return the status of an answer to a body in these parts; then the client waits."""
    waiting, sent = list(messages), []

    async def receive():
        if waiting:
            return waiting.pop(0)
        await (before_end or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await guard({**SCOPE, "path": path}, receive, send)
    return sent[0]["status"] if sent else None


def body(data=b"", more=False):
    return {"type": "http.request", "body": data, "more_body": more}


def guarded(app, check=lambda scope: None, **given):
    noted = []
    guard = Guard(
        app,
        limits=Limits(**given),
        check=check,
        finished=lambda scope, status, seconds: noted.append(status),
    )
    return guard, noted


async def echo(scope, receive, send):
    length = len((await receive())["body"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


def test_what_comes_while_a_batch_is_computed_is_the_next_batch():
    sizes, count = counted()

    async def run():
        batcher = Batcher[int](lambda items: [i * 10 for i in items], most=4, count=count)
        return await asyncio.gather(*(batcher([i]) for i in range(10)))

    assert asyncio.run(run()) == [[i * 10] for i in range(10)]
    assert sizes == [4, 4, 2]


def test_a_request_that_is_given_up_is_left_out_of_its_batch():
    sizes, count = counted()

    async def run():
        batcher = Batcher(lambda items: items, most=2, count=count)
        tasks = [asyncio.create_task(batcher([i])) for i in range(6)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(run())
    assert isinstance(found.pop(3), asyncio.CancelledError)
    assert found == [[0], [1], [2], [4], [5]]
    assert sum(sizes) == 5


def test_an_error_of_a_batch_reaches_each_of_its_requests_and_no_other():
    def fail_on_three(items):
        if 3 in items:
            raise ValueError("three")
        return items

    async def run():
        batcher = Batcher(fail_on_three, most=2, count=lambda size: None)
        tasks = [asyncio.create_task(batcher([i])) for i in range(6)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(run())
    assert found[:2] == [[0], [1]]
    assert found[4:] == [[4], [5]]
    assert all(isinstance(error, ValueError) for error in found[2:4])


@pytest.mark.parametrize("remembered", [100, 2, 0])
def test_texts_have_the_features_of_the_encoder_whatever_is_remembered(encoder, remembered):
    words = ["a red field", "a blue field", "a green field", "a red field"]
    sizes, count = counted()
    hits, count_hits = counted()

    async def run():
        texts = Texts(encoder, remembered=remembered, count=count, count_hits=count_hits)
        return [torch.stack(await texts.features(words)) for _ in range(3)]

    expected = encode_texts(encoder, words)
    for rows in asyncio.run(run()):
        torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)
    if remembered == 100:
        assert (sum(sizes), sum(hits)) == (3, 1 + 2 * 4)
    if remembered == 0:
        assert sum(sizes) == 9


def test_clients_that_ask_again_at_once_share_a_batch_and_nobody_else_waits(monkeypatch):
    monkeypatch.setattr(batching, "MOST_PATIENCE", 0.5)
    monkeypatch.setattr(batching, "PATIENCE", 1000)
    sizes = []

    def compute(items):
        time.sleep(0.01)
        return [torch.zeros(1)] * len(items)

    async def run(clients):
        batcher = Batcher(compute, most=8, count=sizes.append)

        async def client(number):
            for _ in range(6):
                await batcher(["a text"])
                await asyncio.sleep(0.005 * number)

        await asyncio.gather(*map(client, range(clients)))

    asyncio.run(run(4))
    assert sizes == [4] * 6
    asyncio.run(asyncio.wait_for(run(1), 2))

    async def ask_much():
        await Batcher(compute, most=8, count=sizes.append)(["a text"] * 80)

    sizes.clear()
    asyncio.run(asyncio.wait_for(ask_much(), 2))
    assert sizes == [8] * 10


def test_a_classifier_is_that_of_the_library(encoder):
    names, templates = ["red", "blue", "green"], ["a {} field", "{}"]

    async def run():
        texts = Texts(encoder, count=lambda size: None, count_hits=lambda hits: None)
        await texts.features(["red"])
        return await texts.classifier(names, templates)

    expected = build_classifier(encoder, names, templates)
    torch.testing.assert_close(asyncio.run(run()), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pixels": 0}, "--max-megapixels 0"),
        ({"concurrent": 0}, "--concurrent 0"),
        ({"seconds": float("nan")}, "--timeout nan"),
    ],
)
def test_limits_that_leave_nothing_are_refused_by_the_name_of_their_option(wrong, said):
    with pytest.raises(UserError, match=f"{said} answers nothing"):
        Limits(**wrong)


def test_a_body_above_the_limit_is_refused_and_one_at_it_is_not():
    guard, noted = guarded(echo, body_bytes=100)
    assert asyncio.run(asked(guard, body(b"x" * 60, True), body(b"x" * 40))) == 200
    assert asyncio.run(asked(guard, body(b"x" * 60, True), body(b"x" * 41))) == 413
    assert noted == [200, 413]


def test_bodies_together_have_a_limit_and_their_room_is_given_back():
    guard, _ = guarded(echo, body_bytes=100, bodies_bytes=150)

    async def run():
        held = asyncio.create_task(asked(guard, body(b"x" * 90, True)))
        await asyncio.sleep(0)
        refused = await asked(guard, body(b"x" * 90))
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        return refused, await asked(guard, body(b"x" * 90))

    assert asyncio.run(run()) == (429, 200)


def test_a_client_that_sends_slowly_is_told_so_and_takes_no_place():
    guard, _ = guarded(echo, concurrent=1, seconds=0.05)

    async def run():
        slow = asyncio.create_task(asked(guard, body(b"{", True)))
        await asyncio.sleep(0)
        return await asked(guard, body(b"{}")), await slow

    assert asyncio.run(run()) == (200, 408)


def test_more_requests_than_there_are_places_are_refused_at_once():
    gate = asyncio.Event()

    async def wait(scope, receive, send):
        await gate.wait()
        await echo(scope, receive, send)

    guard, _ = guarded(wait, concurrent=2)

    async def run():
        working = [asyncio.create_task(asked(guard, body())) for _ in range(2)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert guard.is_full
        refused = await asked(guard, body())
        gate.set()
        free = await asked(guard, body(), path="/health")
        return refused, free, await asyncio.gather(*working), guard.is_full

    assert asyncio.run(run()) == (429, 200, [200, 200], False)


def test_work_that_takes_too_long_is_given_up():
    given_up = []

    async def endless(scope, receive, send):
        try:
            await asyncio.Event().wait()
        finally:
            given_up.append(True)

    guard, noted = guarded(endless, seconds=0.05)
    assert asyncio.run(asked(guard, body())) == 503
    assert given_up == [True]
    assert noted == [503]


def test_work_for_a_client_that_has_hung_up_is_given_up():
    given_up, gone = [], asyncio.Event()

    async def endless(scope, receive, send):
        gone.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up.append(True)

    guard, noted = guarded(endless)
    assert asyncio.run(asked(guard, body(), before_end=gone)) is None
    assert given_up == [True]
    assert noted == [499]


def scope(path="/search", **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return {
        "type": "http",
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
    }


TOKEN = "0123456789abcdef"


@pytest.mark.parametrize("path", ["/search", "/metrics", "/pictures/1/thumbnail", "/about", "/x"])
def test_a_request_without_the_token_is_refused_and_one_with_it_is_not(path):
    door = Access("0.0.0.0", TOKEN)
    for wrong in (
        {},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Basic {TOKEN}"},
        {"cookie": f"{access.COOKIE}=other"},
        {"cookie": "\x00"},
    ):
        with pytest.raises(Refused) as refused:
            door.check(scope(path, **wrong))
        assert refused.value.status == 401
    door.check(scope(path, authorization=f"Bearer {TOKEN}"))
    for beside in ("other=1", '{"of": ["another", "service"]}', "odd[]=x"):
        door.check(scope(path, cookie=f"{beside}; {access.COOKIE}={TOKEN}"))


@pytest.mark.parametrize("path", access.OPEN)
def test_what_tells_nothing_about_the_pictures_needs_no_token(path):
    Access("0.0.0.0", TOKEN).check(scope(path))


def test_fewer_than_no_texts_cannot_be_remembered(tmp_path):
    options = {"host": "127.0.0.1", "port": 0, "token": None, "model": None}
    with pytest.raises(UserError, match=r"--remember -1 .* Give 0 or more"):
        serve(tmp_path, remembered=-1, limits=Limits(), **options)


def test_a_web_site_that_calls_itself_by_this_address_is_refused():
    door = Access("127.0.0.1", None)
    for name in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000", "localhost"):
        door.check(scope(host=name, origin=f"http://{name}"))
    for name in ("evil.example", "evil.example:8000", "localhost.evil.example", "[", "a@b"):
        with pytest.raises(Refused, match="localhost"):
            door.check(scope(host=name))
    for origin in ("http://evil.example", "null", "http://localhost:9", "http://["):
        with pytest.raises(Refused, match="Another web site"):
            door.check(scope(host="localhost:8000", origin=origin))


def test_a_token_is_made_where_others_can_ask(monkeypatch):
    monkeypatch.delenv("VLP_TOKEN", raising=False)
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        assert choose_token(host, None) is None
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        made = choose_token(host, None)
        assert len(made) >= 32
        assert made != choose_token(host, None)
    with pytest.raises(UserError, match="16 or more"):
        choose_token("127.0.0.1", "short")
    with pytest.raises(UserError, match="of the signs"):
        choose_token("127.0.0.1", TOKEN + "\r\nX: y")
    monkeypatch.setenv("VLP_TOKEN", TOKEN)
    assert choose_token("0.0.0.0", None) == TOKEN


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_refused_with_a_reason(name):
    data, reason = BAD[name]
    with pytest.raises(Refused, match=reason) as refused:
        pictures.uploaded(data, 50_000_000)
    assert refused.value.status == 422
    assert len(refused.value.reason) < 200


def test_an_address_that_cannot_be_had_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for host, wrong in (("127.0.0.1", port), ("127.0.0.1", 70_000), ("no.such.invalid", 0)):
            with pytest.raises(UserError, match=rf"Cannot open {host}:{wrong}.*--port"):
                open_port(host, wrong)


def test_a_picture_may_come_as_base64_or_as_a_data_url():
    data = base64.b64encode(picture()).decode()
    for sent in (data, f"data:image/png;base64,{data}"):
        assert pictures.uploaded(sent, 10_000).size == (40, 32)


def test_thumbnails_are_small_upright_and_say_nothing_of_where_they_were_taken():
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    exif.get_ifd(0x8825)[1] = "N"
    buffer = io.BytesIO()
    Image.new("RGB", (1200, 600), "red").save(buffer, "JPEG", exif=exif)
    made = pictures.Thumbnails(lambda row: buffer.getvalue())(0, "thumbnail")
    shown = decode(made)
    assert shown.size == (160, 320)
    assert not Image.open(io.BytesIO(made)).getexif()


def test_thumbnails_are_made_once_and_the_oldest_are_forgotten(monkeypatch):
    reads = []

    def read(row):
        reads.append(row)
        return picture(noise=row)

    thumbnails = pictures.Thumbnails(read)
    one = thumbnails(1, "thumbnail")
    assert thumbnails(1, "thumbnail") is one
    monkeypatch.setattr(pictures, "KEPT_BYTES", len(one) + 10)
    thumbnails(2, "thumbnail")
    thumbnails(1, "thumbnail")
    assert reads == [1, 2, 1]


def test_fields_that_tell_pictures_apart_are_offered():
    columns = {
        "width": pa.array(range(100, 200)),
        "vendor": pa.array(["a", "b", "b", None] * 25),
        "name": pa.array([f"x{i}" for i in range(100)]),
        "same": pa.array([1] * 100),
        "a<b": pa.array(["a", "b"] * 50),
        "none": pa.nulls(100),
    }
    found = {field.name: field for field in fields_about(columns.items())}
    assert list(found) == ["vendor", "width"]
    assert found["vendor"].values == [{"value": "b", "count": 50}, {"value": "a", "count": 25}]
    assert (found["width"].least, found["width"].most) == (100, 199)
