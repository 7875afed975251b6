"""The service as a process of its own: what it answers, and that nobody can misuse it."""

import asyncio
import collections
import io
import json
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from contextlib import closing

import numpy as np
import pyarrow.parquet as pq
import pytest
from bad_pictures import BAD, base64_of
from serve_support import HOSTILE, make_index, serving
from tests_support import picture

from vlp.checkpoint import load_encoder
from vlp.classifier import build_classifier, probabilities
from vlp.encode import encode_images, encode_texts
from vlp.image import decode

pytestmark = pytest.mark.slow
TOKEN = "a-token-of-this-test"
MEGABYTE = 1_000_000
OUTSIDE = ("file:///etc/hostname", "/etc/hostname", "../../../etc/hostname", "\\\\host\\share")


@pytest.fixture(scope="module")
def index(model, tmp_path_factory):
    return make_index(model, tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def served(index):
    with serving(index, "--timeout", "6") as service:
        yield service


@pytest.fixture
def client(served):
    """Return a client; after the test the service must answer as before, and quickly."""
    with served.client() as made:
        yield made
    began = time.perf_counter()
    with served.client() as made:
        assert made.post("/search", json={"terms": [{"text": "a red field"}]}).status_code == 200
        assert made.get("/health").json() == {"status": "ok"}
        assert made.get("/ready").json() == {"status": "ready"}
    assert time.perf_counter() - began < 3


def refusal(answer, status, reason=""):
    """Check that a request was refused with a reason that is short and not what was sent."""
    assert answer.status_code == status, answer.text[:300]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    said = answer.json()
    assert list(said) == ["error"]
    assert 10 < len(said["error"]) < 400
    assert reason in said["error"]


def find(client, *terms, **query):
    answer = client.post("/search", json={"terms": list(terms), **query})
    assert answer.status_code == 200, answer.text
    return answer.json()["hits"]


def test_features_are_those_of_the_encoder(client, model):
    encoder = load_encoder(model)
    texts, image = ["a red field", "a blue field"], picture("blue")
    answer = client.post("/embed", json={"texts": texts, "images": [base64_of(image)]}).json()
    np.testing.assert_allclose(answer["texts"], encode_texts(encoder, texts).numpy(), atol=1e-5)
    expected = encode_images(encoder, [decode(image)]).numpy()
    np.testing.assert_allclose(answer["images"], expected, atol=1e-5)


def test_a_text_an_image_a_key_and_a_feature_find_what_they_should(client):
    by_key = find(client, {"key": "00007"}, k=5)
    assert by_key[0]["key"] in ("00007", by_key[0]["key"])
    feature = client.post("/embed", json={"texts": ["a red field"]}).json()["texts"][0]
    by_text, by_vector = find(client, {"text": "a red field"}), find(client, {"vector": feature})
    assert [hit["id"] for hit in by_text] == [hit["id"] for hit in by_vector]
    scores = [hit["score"] for hit in by_text]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= hit["percentile"] <= 100 for hit in by_text)
    picture_of = client.get(f"/pictures/{by_text[0]['id']}/large").content
    by_image = find(client, {"image": base64_of(picture_of)}, k=3)
    assert by_image[0]["score"] > 0.9


def test_pages_follow_each_other_without_a_gap(client):
    whole = [hit["id"] for hit in find(client, {"text": "red"}, k=90)]
    parts = [find(client, {"text": "red"}, k=30, offset=start) for start in (0, 30, 60)]
    assert [hit["id"] for part in parts for hit in part] == whole
    assert len(set(whole)) == 90


def test_without_terms_every_picture_comes_in_its_order(client):
    assert [hit["id"] for hit in find(client, k=96)] == list(range(96))


def test_conditions_hold_for_every_hit(client):
    one = find(client, {"text": "red"}, k=90, where=['lot=["a", "b"]'])
    assert {hit["metadata"]["lot"] for hit in one} == {"a", "b"}
    assert len(one) == 64
    between = ["number>=10", "number<=19"]
    other = find(client, {"text": "red"}, k=90, where=between)
    assert sorted(hit["metadata"]["number"] for hit in other) == list(range(10, 20))
    browsed = find(client, k=90, where=between)
    assert [hit["metadata"]["number"] for hit in browsed] == list(range(10, 20))


def test_the_threshold_leaves_the_best_share(client):
    hits = find(client, {"text": "red"}, k=96, min_percentile=75)
    assert 15 <= len(hits) <= 30
    assert all(hit["percentile"] >= 75 for hit in hits)


def test_hits_are_sorted_by_what_is_asked(client):
    hits = find(client, {"text": "red"}, k=50, sort="-number", min_percentile=50)
    numbers = [hit["metadata"]["number"] for hit in hits]
    assert numbers == sorted(numbers, reverse=True)
    keys = [hit["key"] for hit in find(client, {"text": "red"}, k=50, sort="key")]
    assert keys == sorted(keys)


def test_away_from_a_text_turns_the_order_around(client):
    near = find(client, {"text": "red"}, k=96)
    away = find(client, {"text": "red", "weight": -1}, k=96)
    assert near[0]["id"] == away[-1]["id"]


def test_a_picture_is_classified_as_by_the_library(client, model):
    encoder, names, templates = load_encoder(model), ["red", "green", "blue"], ["a {} field", "{}"]
    weights = build_classifier(encoder, names, templates)
    features = encode_images(encoder, [decode(picture("blue"))])
    expected = dict(zip(names, probabilities(encoder, features, weights)[0].tolist(), strict=True))
    asked = {"image": base64_of(picture("blue")), "classes": names, "templates": templates}
    answer = client.post("/classify", json=asked).json()
    for row in answer["classes"]:
        assert row["probability"] == pytest.approx(expected[row["class"]], abs=1e-4)
    shares = [row["probability"] for row in answer["classes"]]
    assert shares == sorted(shares, reverse=True)
    assert client.post("/classify", json={"key": "00003", "classes": names}).status_code == 200


def test_the_selection_is_downloaded(client):
    ids = [5, 3, 8]
    listed = client.post("/download", json={"ids": ids, "kind": "json"}).json()
    assert [one["id"] for one in listed] == ids
    keep_list = client.post("/download", json={"ids": ids, "kind": "keep_list"}).content
    kept = pq.read_table(io.BytesIO(keep_list)).to_pylist()
    assert [one["key"] for one in kept] == ["00005", "00003", "00008"]
    assert {one["shard"] for one in kept} == {"000000.tar"}
    zipped = client.post("/download", json={"ids": ids, "kind": "pictures"}).content
    with zipfile.ZipFile(io.BytesIO(zipped)) as file:
        names = file.namelist()
        assert len(names) == 3
        assert not any("/" in name or ".." in name for name in names)
        assert decode(file.read(names[0])).size == (40, 32)


def test_ten_megabytes_of_text_are_refused(client):
    text = "a " * (5 * MEGABYTE)
    for body in (
        {"terms": [{"text": text}]},
        {"terms": [{"key": text}]},
        {"sort": text},
        {"where": [text]},
        {text: 1},
    ):
        refusal(client.post("/search", json=body), 422)
    refusal(client.post("/embed", json={"texts": [text]}), 422)
    refusal(client.post("/classify", json={"key": "1", "classes": [text]}), 422)
    refusal(client.post("/search", content=b"[" * (10 * MEGABYTE)), 422)
    refusal(client.post("/search", content=b" " * (30 * MEGABYTE)), 413, "larger than")


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_refused_and_takes_no_memory(client, served, name):
    data, reason = BAD[name]
    before = served.peak_bytes()
    refusal(client.post("/embed", json={"images": [data]}), 422, reason)
    refusal(client.post("/search", json={"terms": [{"image": data}]}), 422)
    refusal(client.post("/classify", json={"image": data, "classes": ["a"]}), 422)
    assert served.peak_bytes() - before < 250 * MEGABYTE


def test_no_path_and_no_address_that_a_client_names_is_opened(client):
    with closing(socket.create_server(("127.0.0.1", 0))) as trap:
        trap.settimeout(0.3)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        for name in (*OUTSIDE, url):
            for field in ("image", "key", "vector", "image_url", "url", "path"):
                answer = client.post("/search", json={"terms": [{field: name}]})
                refusal(answer, 422)
            asked = {"classes": ["a", name], "templates": ["{}"], "key": "00001"}
            assert client.post("/classify", json=asked).status_code == 200
            refusal(client.post("/classify", json={"key": name, "classes": ["a"]}), 422)
            assert find(client, {"text": name})
            assert not find(client, where=[f"lot={name}"])
            refusal(client.post("/download", json={"ids": [name]}), 422)
        with pytest.raises(TimeoutError):
            trap.accept()


@pytest.mark.parametrize(
    "path",
    [
        "/page/../service.py",
        "/page/..%2fservice.py",
        "/page/%2e%2e/%2e%2e/config.json",
        "/page//etc/hostname",
        "/page/%2fetc%2fhostname",
        "/pictures/..%2f..%2fetc%2fhostname/thumbnail",
        "/pictures/-1/thumbnail",
        "/pictures/96/thumbnail",
        "/pictures/99999999999999999999999/large",
        "/pictures/1/original",
        "/../../etc/hostname",
        "//etc/hostname",
        "/nothing\x00",
    ],
)
def test_no_path_leads_out_of_the_page_and_the_index(client, served, path):
    host, port = served.address
    with socket.create_connection((host, port), timeout=10) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    status = int(answer.split()[1])
    assert status in (400, 404, 422), answer[:300]
    assert b"import" not in answer


def test_captions_and_metadata_are_data_whatever_they_hold(client):
    answer = client.post("/search", json={"k": 1})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    hit = answer.json()["hits"][0]
    assert hit["caption"] == HOSTILE
    assert hit["metadata"][HOSTILE] == HOSTILE
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert client.head("/").status_code == 200
    page = client.get("/").text
    assert not re.search(
        r"<script(?! type=\"module\" src=\"/page/)|\son\w+=|style=|https?://", page
    )


def test_the_head_of_the_page_is_answered(client):
    answer = client.head("/")
    assert (answer.status_code, answer.content) == (200, b"")


def test_every_field_that_is_wrong_is_named(client):
    for path, body, said in (
        ("/search", {"terms": [{}]}, "terms.0"),
        ("/search", {"terms": [{"text": " "}]}, "terms.0"),
        ("/search", {"terms": [{"text": "a", "weight": 0}]}, "terms.0"),
        ("/search", {"terms": [{"text": "a", "weight": 1e999}]}, "weight"),
        ("/search", {"terms": [{"text": "a", "key": "b"}]}, "terms.0"),
        ("/search", {"terms": [{"key": "never"}]}, "never"),
        ("/search", {"terms": [{"vector": [1, 2]}]}, "64"),
        ("/search", {"terms": [{"vector": [0] * 64}]}, ""),
        ("/search", {"terms": [{"text": "\ud800"}]}, "terms.0.text"),
        ("/search", {"k": 0}, "k"),
        ("/search", {"k": 10**30}, "k"),
        ("/search", {"offset": -1}, "offset"),
        ("/search", {"min_percentile": 101}, "min_percentile"),
        ("/search", {"tersm": []}, "tersm"),
        ("/search", {"where": ["lot"]}, "'lot'"),
        ("/search", {"where": ["number>=x"]}, "'x'"),
        ("/search", {"where": ["lto=a"]}, "lot"),
        ("/search", {"sort": "lto"}, "lot"),
        ("/classify", {"key": "00001", "classes": []}, "classes"),
        ("/classify", {"key": "00001", "classes": ["a", "a"]}, "stands twice"),
        ("/classify", {"key": "00001", "classes": [" "]}, "name"),
        ("/classify", {"key": "00001", "classes": ["a"], "templates": ["b"]}, "no place"),
        ("/classify", {"classes": ["a"]}, "give one of"),
        ("/classify", {"key": "00001", "classes": ["a"] * 513}, "classes"),
        ("/embed", {"texts": [""]}, "empty"),
        ("/embed", {"images": [""]}, "images.0"),
        ("/classify", {"image": "", "classes": ["a"]}, "image"),
        ("/download", {"ids": [1000]}, "1000"),
    ):
        content = json.dumps(body)
        answer = client.post(path, content=content, headers={"content-type": "application/json"})
        refusal(answer, 404 if path == "/download" else 422, said)
    for options in ({}, {"content": "{k: 1}"}, {"data": {"k": "1"}}, {"json": [1]}):
        refusal(client.post("/search", **options), 422, "must be a JSON object")
    refusal(client.get("/nothing"), 404)
    refusal(client.get("/search"), 405)


def test_the_examples_of_the_schema_are_bodies_that_are_taken(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("search", "classify", "embed", "download"):
        [example] = schemas[f"{name.title()}Request"]["examples"]
        assert client.post(f"/{name}", json=example).status_code == 200


def test_a_browser_keeps_a_picture_until_the_next_start(client, index):
    url = "/pictures/1/thumbnail"
    first = client.get(url)
    assert "no-cache" in first.headers["cache-control"]
    kept = {"If-None-Match": first.headers["etag"]}
    assert client.get(url, headers=kept).status_code == 304
    with serving(index) as other, other.client() as later:
        assert later.get(url, headers=kept).content == first.content


def test_a_burst_of_ten_thousand_requests_is_answered_or_told_to_wait(client, served):
    statuses = collections.Counter()

    async def ask(number):
        reader, writer = await asyncio.open_connection(*served.address)
        for i in range(50):
            body = json.dumps({"terms": [{"text": f"text {number} {i}"}], "k": 2}).encode()
            writer.write(
                b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            head = await reader.readuntil(b"\r\n\r\n")
            statuses[int(head.split()[1])] += 1
            await reader.readexactly(int(re.findall(rb"content-length: (\d+)", head)[0]))
        writer.close()

    async def burst():
        await asyncio.gather(*(ask(number) for number in range(200)))

    asyncio.run(burst())
    assert sum(statuses.values()) == 10_000
    assert set(statuses) <= {200, 429}
    assert statuses[200] > 1000
    count = re.findall(
        r'vlp_requests_total{.*"/search",status="200"} (\S+)', client.get("/metrics").text
    )
    assert float(count[0]) >= statuses[200]


def test_slow_clients_keep_nobody_out_and_are_cut_off(client, served):
    slow = [socket.create_connection(served.address, timeout=30) for _ in range(100)]
    for i, raw in enumerate(slow):
        head = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
        raw.sendall(head if i % 2 else head[:20])
    began = time.perf_counter()
    assert find(client, {"text": "while others are slow"})
    assert time.perf_counter() - began < 2
    for i, raw in enumerate(slow):
        answer = raw.recv(1000)  # the end, or that it did not come in time
        assert answer.startswith(b"HTTP/1.1 408") if i % 2 else answer == b""
        raw.close()
    assert time.perf_counter() - began < 20


def test_a_client_that_hangs_up_takes_nothing_with_it(client, served):
    body = json.dumps({"texts": [f"a text {i}" for i in range(256)]}).encode()
    head = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for end in (0, 10, len(body)):
        for _ in range(10):
            with socket.create_connection(served.address) as raw:
                raw.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body[:end])
    deadline = time.perf_counter() + 10
    while "vlp_requests_at_work 0.0" not in client.get("/metrics").text:
        assert time.perf_counter() < deadline


def test_what_is_under_way_is_finished_after_sigterm(index):
    with serving(index, "--remember", "0") as served:
        captions = {"classes": [f"name {i}" for i in range(256)], "templates": ["a {}", "the {}"]}
        body = json.dumps({"key": "00001", **captions}).encode()
        head = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        raws = [socket.create_connection(served.address, timeout=30) for _ in range(8)]
        for raw in raws:
            raw.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(0.05)
        served.process.send_signal(signal.SIGTERM)
        for raw in raws:
            answer = b"".join(iter(lambda raw=raw: raw.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
            assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["classes"]) == 256
        assert served.process.wait(timeout=20) in (0, -signal.SIGTERM)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(served.address)
        assert "Traceback" not in served.process.stderr.read()


def test_without_the_token_only_the_empty_page_is_there(index):
    with serving(index, token=TOKEN) as served, served.client() as client:
        schema = client.get("/openapi.json").json()
        free = {"/health", "/ready"}
        for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong-token-of-16"}):
            for path, methods in schema["paths"].items():
                if path not in free:
                    for method in methods:
                        made = path.replace("{number}", "1").replace("{size}", "large")
                        refusal(client.request(method, made, headers=headers), 401, "token")
            refusal(client.get("/?token=wrong-token-of-16", headers=headers), 401)
            assert "Traceback" not in client.get("/", headers=headers).text
        assert client.get("/about").status_code == 200
        entered = client.get(f"/?token={TOKEN}")
        assert entered.status_code == 303
        assert entered.headers["location"] == "/"
        cookie = entered.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        with_cookie = {"Authorization": "", "Cookie": cookie.partition(";")[0]}
        assert client.get("/about", headers=with_cookie).status_code == 200


def test_an_index_that_is_none_is_one_line(tmp_path):
    argv = [sys.executable, "-m", "vlp", "serve", str(tmp_path), "--port", "0"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("vlp: ")
    assert done.stderr.count("\n") == 1
    assert "holds no index" in done.stderr


def test_requests_made_from_the_schema_find_no_failure_of_the_service(served, tmp_path):
    pytest.importorskip("schemathesis")
    argv = [sys.executable, "-m", "schemathesis.cli", "run", f"{served.url}openapi.json"]
    argv += ["--checks", "not_a_server_error", "--max-examples", "15", "--seed", "1"]
    argv += ["--phases", "examples,coverage,fuzzing", "--request-timeout", "20"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    passed = re.findall(r"(\d+) generated, (\d+) passed", done.stdout)[0]
    assert passed[0] == passed[1]
    assert int(passed[0]) > 200
