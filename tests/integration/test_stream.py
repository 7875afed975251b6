"""The stream: the same batches whatever reads them, from anywhere, and an end to what is broken."""

import functools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from tests_support import pairs

from data_pipelines import fetch
from data_pipelines import fetch_ahead as fetch_ahead_module
from data_pipelines import plan as plan_module
from data_pipelines.augment import Augmentation
from data_pipelines.captions import CaptionChoice
from data_pipelines.loader import Loader, worker_error
from data_pipelines.plan import Plan, Resampled, Row
from data_pipelines.reader import Reader
from data_pipelines.shard_cache import cache_folder
from data_pipelines.shards import name_shards, open_shards, write_shards
from data_pipelines.tally import Tally
from vlp.errors import UserError
from vlp.types import Batch

BATCH = 12
COUNTS = (17, 1, 0, 30, 5)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Give each test a cache of its own, and short waits between tries."""
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "SECONDS_BETWEEN_TRIES", (0.01, 0.01))


def write(folder, counts=COUNTS, *, is_broken=lambda number: False) -> Path:
    """Write shards of these sizes; broken samples have half an image."""
    samples = pairs(sum(counts))
    for number, sample in enumerate(samples):
        if is_broken(number):
            samples[number] = replace(sample, image=sample.image[:60])
    start = 0
    for number, count in enumerate(counts):
        write_shards(samples[start : start + count], folder / ".one", samples_per_shard=1000)
        start += count
        one = folder / ".one" / "000000.tar"
        if not count:
            one.write_bytes(bytes(10240))  # a tar of nothing
        one.rename(folder / f"{number:06d}.tar")
    (folder / ".one").rmdir()
    return folder


def make(source, encoder, **changes) -> Loader:
    own = {"workers": 0}
    for name in ("process", "num_processes", "workers", "max_bad"):
        own |= {name: changes.pop(name)} if name in changes else {}
    opened = changes.pop("opened") if "opened" in changes else open_shards(source)
    options = {
        "sources": [opened],
        "plan": changes.pop("plan", None) or Plan([Row(opened.counts, 0)], BATCH),
        "tokenizer": encoder.tokenizer,
        "image_size": (32, 32),
        "augmentation": Augmentation(scale=(0.4, 1.0), flip=0.5, hue=0.1),
        "captions": CaptionChoice.parse("txt"),
        "group": "none",
    }
    return Loader(Reader(**{**options, **changes}), **own)


def take(loader: Loader, samples_seen: int, count: int) -> list[Batch]:
    batches = loader.batches(samples_seen)
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def merged(parts: list[Batch]) -> Batch:
    """Return the global batch of the batches of all processes: a row of each in turn."""
    return Batch(
        *(torch.stack([p[i] for p in parts], 1).flatten(0, 1) for i in (0, 1)),
        keys=[key for row in zip(*(p.keys for p in parts), strict=True) for key in row],
        group=torch.stack([p.group for p in parts], 1).flatten(),
        seed=torch.stack([p.seed for p in parts], 1).flatten(),
    )


def take_all(source, encoder, processes, workers, samples_seen, count, **changes):
    """Return the global batches that some processes read, and what they all counted."""
    loaders = [
        make(source, encoder, process=p, num_processes=processes, workers=workers, **changes)
        for p in range(processes)
    ]
    read = [take(loader, samples_seen, count) for loader in loaders]
    for loader in loaders[1:]:
        loaders[0].tally.add(loader.tally)
    return [merged(list(parts)) for parts in zip(*read, strict=True)], loaders[0]


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.keys == b.keys
        for name in ("images", "tokens", "seed", "group"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("uneven"))


@pytest.fixture(scope="module")
def endless(folder, encoder):
    """Return the batches of three epochs of 53 samples, read in this process."""
    return take(make(folder, encoder), 0, 3 * 53 // BATCH)


def sometimes(cases: list, often: set[int]) -> list:
    """Return the cases, those not of these numbers marked as slow."""
    return [
        pytest.param(*case, marks=() if number in often else pytest.mark.slow)
        for number, case in enumerate(cases)
    ]


@pytest.mark.parametrize(
    ("processes", "workers"),
    sometimes([(p, w) for p in (1, 2, 3) for w in (0, 1, 2, 4)], often={2, 3, 5, 8}),
)
def test_any_number_of_processes_and_workers_gives_the_same_batches(
    processes, workers, folder, encoder, endless
):
    count = 2 * 53 // BATCH + 1  # over the end of the second epoch
    found, loader = take_all(folder, encoder, processes, workers, 0, count)
    assert_same(found, endless[:count])
    assert loader.tally.reads == count * BATCH
    seen = Counter(key for batch in found for key in batch.keys)
    assert set(seen) == {f"{i:05d}" for i in range(53)}
    assert set(seen.values()) <= {2, 3}


RESUMES = random.Random(7)


@pytest.mark.parametrize(
    ("step", "processes", "workers"),
    sometimes(
        [
            (RESUMES.randrange(11), RESUMES.choice([1, 2, 3]), RESUMES.choice([0, 0, 1, 2, 3]))
            for _ in range(20)
        ],
        often={0, 4, 8, 12, 16},
    ),
)
def test_a_run_that_goes_on_equals_one_that_never_stopped(
    step, processes, workers, folder, encoder, endless
):
    found, _ = take_all(folder, encoder, processes, workers, step * BATCH, 2)
    assert_same(found, endless[step : step + 2])


def test_a_run_may_go_on_in_the_middle_of_a_batch_that_it_never_read(folder, encoder, endless):
    whole = torch.cat([batch.images for batch in endless])
    for start in (1, 5, 52, 53, 54):
        (batch,) = take(make(folder, encoder), start, 1)
        assert torch.equal(batch.images, whole[start : start + BATCH])


@pytest.mark.parametrize(("processes", "workers"), sometimes([(1, 3), (2, 0), (3, 2)], often={0}))
def test_broken_samples_have_the_same_substitutes_and_ledger_whatever_reads(
    processes, workers, tmp_path, encoder
):
    broken = write(tmp_path / "broken", is_broken=lambda number: number % 5 == 1 and number > 17)
    count = 2 * 53 // BATCH
    whole = make(broken, encoder)
    one = take(whole, 0, count)
    other, loader = take_all(broken, encoder, processes, workers, 0, count)
    assert_same(one, other)
    assert loader.faults().as_dict() == whole.faults().as_dict()
    assert loader.faults().as_dict()["image ends early"]["count"] == 7
    assert loader.tally.substituted == whole.tally.substituted >= 7
    assert loader.tally.reads == whole.tally.reads


@pytest.mark.parametrize("stated", [{"000003.tar": 40}, {"000003.tar": 25}, {"000002.tar": 4}])
def test_a_count_that_is_stated_wrongly_is_in_the_ledger_whatever_reads(stated, tmp_path, encoder):
    wrong = write(tmp_path / "wrong")
    (wrong / "sizes.json").write_text(str(stated).replace("'", '"'))
    whole = make(wrong, encoder)
    one = take(whole, 0, 6)
    other, loader = take_all(wrong, encoder, 2, 2, 0, 6)
    assert_same(one, other)
    ((name, number),) = stated.items()
    truth = COUNTS[int(name[:6])]
    reason, count = "shard holds fewer samples than stated", number - truth
    if number < truth:
        reason, count = "sample beyond the stated count", truth - number
    faults = whole.faults().as_dict()
    assert {reason: fault["count"] for reason, fault in faults.items()} == {reason: count}
    assert loader.faults().as_dict() == faults
    assert all(name in example for example in faults[reason]["examples"])


def test_drawing_with_replacement_is_the_same_whatever_reads(tmp_path, encoder):
    some = write(tmp_path / "some", (30, 20), is_broken=lambda number: number in (3, 13, 23))
    uncounted = {"plan": Plan([Resampled(2, 3)], BATCH), "opened": name_shards(some)}
    whole = make(some, encoder, **uncounted)
    one = take(whole, 0, 12)
    other, loader = take_all(some, encoder, 3, 2, 0, 12, **uncounted)
    assert_same(one, other)
    assert whole.faults().as_dict() == loader.faults().as_dict()
    examples = whole.faults().as_dict()["image ends early"]["examples"]
    assert set(examples) <= {f"000000.tar: 000{number}" for number in ("03", "13", "23")}
    # A broken sample that is drawn again is substituted again, but stands in the ledger once.
    assert whole.tally.substituted == loader.tally.substituted > len(whole.faults())


class Files(SimpleHTTPRequestHandler):
    """Serves a folder; the server says what else each request meets."""

    def do_GET(self):
        self.server.requests[self.path] += 1
        status = self.server.answer(self.path)
        if status == "cut":
            data = (Path(self.directory) / self.path[1:]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif status != 200:
            self.send_error(status)
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), functools.partial(Files, directory=str(folder)))
        self.requests: Counter = Counter()
        self.answer = lambda path: 200
        self.url = f"http://127.0.0.1:{self.server_port}"

    def tars(self) -> Counter:
        return Counter({p: n for p, n in self.requests.items() if p.endswith(".tar")})


@pytest.fixture
def serve():
    """Return a function that serves a folder over HTTP on a free port."""
    servers = []

    def start(folder) -> Server:
        server = Server(folder)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


RANGE = "{000000..000004}.tar"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["http", "file", "pipe"])
def test_shards_from_anywhere_give_the_batches_of_the_folder(
    kind, workers, folder, encoder, endless, serve
):
    server = serve(folder)
    source = {
        "http": f"{server.url}/{RANGE}",
        "file": f"file://{folder}/{RANGE}",
        "pipe": f"pipe:cat {folder}/{RANGE}",
    }[kind]
    found, _ = take_all(source, encoder, 1, workers, 0, 5)
    assert_same(found, endless[:5])
    if kind == "http":
        assert server.tars() == {f"/{number:06d}.tar": 1 for number in range(5)}


def test_counts_of_sizes_json_beside_a_url_are_taken_and_nothing_is_fetched_for_them(
    folder, tmp_path, serve
):
    shards = write(tmp_path / "shards")
    (shards / "sizes.json").write_text('{"000000.tar": 17, "000001.tar": 1, "000002.tar": 0}')
    server = serve(shards)
    found = open_shards(f"{server.url}/{{000000..000002}}.tar")
    assert (found.counts.tolist(), found.is_stated.all()) == ([17, 1, 0], True)
    assert server.requests == {"/sizes.json": 1}


def test_a_server_that_fails_at_first_is_asked_again(folder, serve):
    server = serve(folder)
    server.answer = lambda path: 503 if server.requests[path] < 3 else 200
    assert open_shards(f"{server.url}/{RANGE}").counts.tolist() == list(COUNTS)
    assert set(server.tars().values()) == {3}


@pytest.mark.parametrize("status", [500, 503, "cut"])
def test_a_server_that_stays_broken_is_given_up_with_the_url(status, folder, serve):
    server = serve(folder)
    server.answer = lambda path: 404 if path == "/sizes.json" else status
    with pytest.raises(UserError, match=rf"Cannot fetch {server.url}/000000.tar in 3") as error:
        open_shards(f"{server.url}/{RANGE}")
    assert "\n" not in str(error.value)
    assert server.tars()["/000000.tar"] == 3
    assert set(server.tars().values()) <= {1, 2, 3}


def test_a_download_that_was_cut_short_is_fetched_again(folder, serve):
    server = serve(folder)
    server.answer = lambda path: "cut" if server.tars()[path] == 1 else 200
    assert open_shards(f"{server.url}/{RANGE}").counts.tolist() == list(COUNTS)
    assert set(server.tars().values()) == {2}


def test_a_shard_that_is_not_there_is_named_at_once(folder, serve):
    server = serve(folder)
    with pytest.raises(UserError, match=rf"There is no shard at {server.url}/000009.tar\."):
        open_shards(f"{server.url}/00000{{0,9}}.tar")
    assert server.requests["/000009.tar"] == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s3://bucket/x.tar", r's3fs.*pip install "vlp\[remote\]"'),
        ("nonsense://x.tar", "Cannot fetch nonsense://x.tar: Protocol not known"),
        ("pipe:echo oh no >&2; exit 3", "Cannot fetch pipe:.* in 3 tries: exit code 3, oh no"),
        ("http://127.0.0.1:9/x.tar", "Cannot fetch http://127.0.0.1:9/"),
        ("file:///missing/x.tar", "There is no shard at file:///missing/x.tar"),
    ],
)
def test_what_cannot_be_fetched_is_told_in_one_line(source, message):
    if source.startswith("s3") and fetch.importlib.util.find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(UserError, match=message) as error:
        open_shards(source)
    assert "\n" not in str(error.value)


def test_processes_that_want_the_same_shard_fetch_it_once(folder, tmp_path, encoder, serve):
    server = serve(folder)
    opened = open_shards(folder)
    remote = name_shards(f"{server.url}/{RANGE}")
    remote.counts = opened.counts
    plan = Plan([Row(opened.counts, 0)], BATCH)
    server.answer = lambda path: time.sleep(0.1) or 200  # so that all of them ask meanwhile
    read, _ = take_all(None, encoder, 1, 4, 0, 3, opened=remote, plan=plan)
    assert_same(read, take(make(folder, encoder), 0, 3))
    assert server.tars() == {f"/{n:06d}.tar": 1 for n in (0, 1, 3, 4)}


@pytest.mark.parametrize("workers", [0, 3])
def test_shards_that_made_room_are_fetched_again_while_reading_goes_on(
    workers, folder, encoder, endless, serve, monkeypatch
):
    server = serve(folder)
    size = (folder / "000003.tar").stat().st_size
    monkeypatch.setenv("VLP_CACHE_GB", str(1.1 * size / 1e9))
    found, _ = take_all(f"{server.url}/{RANGE}", encoder, 1, workers, 0, 8)
    assert_same(found, endless[:8])
    assert server.tars()["/000003.tar"] > 1
    kept = [p for p in cache_folder().rglob("*.tar") if not p.name.startswith(".")]
    assert sum(path.stat().st_size for path in kept) <= 1.1 * size


def test_a_resumed_stream_reads_few_shards_for_its_first_batch(
    tmp_path, encoder, serve, monkeypatch
):
    window, shards, size = 10, 60, 10
    for module in (plan_module, fetch_ahead_module):
        monkeypatch.setattr(module, "WINDOW", window)
    folder = write(tmp_path / "many", (size,) * shards)
    sizes = {f"{number:06d}.tar": size for number in range(shards)}
    (folder / "sizes.json").write_text(str(sizes).replace("'", '"'))
    server = serve(folder)
    source, lanes = f"{server.url}/{{000000..000059}}.tar", 4
    plan = Plan([Row(np.full(shards, size), 0, lanes)], BATCH, lanes=lanes)
    (found,) = take(make(source, encoder, workers=2, plan=plan), 25 * BATCH, 1)
    assert_same([found], take(make(folder, encoder, plan=plan), 25 * BATCH, 1))
    # Of each lane the window that is read and the one ahead, each of which may begin in a shard
    # and end in another; workers are one batch or two ahead of the first.
    assert len(server.tars()) <= 3 * lanes * 2
    assert set(server.tars().values()) == {1}


@pytest.fixture
def windows(tmp_path, monkeypatch):
    """Return 60 shards of 10 samples each and a plan of 4 lanes with windows of 20 samples."""
    for module in (plan_module, fetch_ahead_module):
        monkeypatch.setattr(module, "WINDOW", 20)
    folder = write(tmp_path / "many", (10,) * 60)
    sizes = {f"{number:06d}.tar": 10 for number in range(60)}
    (folder / "sizes.json").write_text(str(sizes).replace("'", '"'))
    return folder, Plan([Row(np.full(60, 10), 0, 4)], BATCH, lanes=4)


def read_windows(server, windows, encoder, workers, start, stop) -> Counter:
    """Read batches of the stream and return how often each shard has been asked for."""
    source, plan = f"{server.url}/{{000000..000059}}.tar", windows[1]
    take(make(source, encoder, workers=workers, plan=plan), start * BATCH, stop - start)
    for thread in threading.enumerate():
        if thread.name == fetch_ahead_module.THREAD:
            thread.join()
    return server.tars()


LAST = 40
"""The batch before which nothing of the next epoch is looked at."""


@pytest.mark.parametrize(("workers", "stop"), [(0, 12), (2, 12), (1, 27)])
def test_when_the_cache_is_lost_as_many_shards_as_stated_are_fetched_again(
    workers, stop, windows, encoder, serve
):
    server = serve(windows[0])
    before = read_windows(server, windows, encoder, workers, 0, stop)
    assert set(before.values()) == {1}
    shutil.rmtree(cache_folder())
    found = read_windows(server, windows, encoder, workers, stop, LAST)
    # 40 samples in a row lie in 5 shards at most: that for each of 4 lanes.
    assert fetch_ahead_module.shards_at_a_time(windows[1]) == [20]
    assert 0 < sum(times > 1 for times in found.values()) <= 20
    assert max(found.values()) == 2


def test_shards_that_are_in_the_cache_are_not_fetched_again(windows, encoder, serve):
    server = serve(windows[0])
    read_windows(server, windows, encoder, 2, 0, 12)
    # What workers were still fetching when they were stopped is not in the cache.
    kept = {f"/{path.name}" for path in cache_folder().rglob("[0-9]*.tar")}
    assert len(kept) >= 12
    found = read_windows(server, windows, encoder, 1, 12, LAST)
    assert {found[path] for path in kept} == {1}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_with_room_for_the_windows_is_enough_to_fetch_every_shard_once(
    workers, windows, encoder, serve, monkeypatch, capsys
):
    server = serve(windows[0])
    size = sum(path.stat().st_size for path in windows[0].glob("*.tar")) / 60
    plan, opened = windows[1], open_shards(f"{server.url}/{{000000..000059}}.tar")
    monkeypatch.setenv("VLP_CACHE_GB", str(24 * size / 1e9))
    fetch_ahead_module.warn_of_small_cache([opened], plan)
    assert not capsys.readouterr().err
    assert set(read_windows(server, windows, encoder, workers, 0, LAST).values()) == {1}
    kept = [path for path in cache_folder().rglob("*.tar") if not path.name.startswith(".")]
    assert len(kept) <= 25


def test_a_cache_without_room_for_the_windows_is_told_of_with_the_number_that_would_do(
    windows, serve, monkeypatch, capsys
):
    server = serve(windows[0])
    size = (windows[0] / "000000.tar").stat().st_size
    opened = open_shards(f"{server.url}/{{000000..000059}}.tar")
    monkeypatch.setenv("VLP_CACHE_GB", str(10 * size / 1e9))
    fetch_ahead_module.warn_of_small_cache([opened], windows[1])
    (line,) = capsys.readouterr().err.splitlines()
    needed = float(re.findall(r"Set VLP_CACHE_GB=([\d.e-]+)", line)[0])
    assert 20 * size < needed * 1e9 < 25 * size
    assert "smaller than the 20 shards that are read at a time" in line
    assert not server.tars()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_without_a_readable_sample_stops_within_seconds_and_names_the_shard(
    workers, tmp_path, encoder
):
    broken = write(tmp_path / "broken", (200, 200), is_broken=lambda number: True)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"00000[01].tar gives no readable sample.*ends early"):
        take(make(broken, encoder, workers=workers), 0, 1)
    assert time.monotonic() - start < 5
    loader = make(broken, encoder, workers=workers)
    with pytest.raises(UserError):
        take(loader, 0, 1)
    assert loader.faults().as_dict()["image ends early"]["count"] > 10, "what failed is counted"


def test_a_source_that_yields_nothing_with_replacement_stops_within_seconds(tmp_path, encoder):
    for number in range(300):
        (tmp_path / f"{number}.tar").write_bytes(b"<html>")
    plan = Plan([Resampled(300, 0)], BATCH)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"\.tar gives no readable sample"):
        take(make(tmp_path, encoder, plan=plan, opened=name_shards(tmp_path)), 0, 1)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_stops_above_the_share_of_bad_samples_that_is_allowed(workers, tmp_path, encoder):
    bad = write(tmp_path / "bad", (60, 60), is_broken=lambda number: number % 10 == 0)
    with pytest.raises(UserError, match=r"of 2\d\d samples cannot be read .*at most 5% may be"):
        take(make(bad, encoder, workers=workers), 0, 40)
    assert len(take(make(bad, encoder, workers=workers, max_bad=0.2), 0, 18)) == 18


def test_closing_the_batches_leaves_no_process_behind(folder, encoder):
    before = set(active_children())
    batches = make(folder, encoder, workers=3).batches(0)
    next(batches)
    started = set(active_children()) - before
    assert len(started) == 3
    batches.close()
    assert not set(active_children()) & started


def test_an_error_leaves_no_process_behind(tmp_path, encoder):
    broken = write(tmp_path / "broken", (40,), is_broken=lambda number: True)
    before = set(active_children())
    with pytest.raises(UserError):
        take(make(broken, encoder, workers=2), 0, 1)
    assert not set(active_children()) - before


def test_closing_does_not_wait_for_what_is_still_being_fetched(folder, encoder, serve):
    server, opened = serve(folder), open_shards(folder)
    remote = name_shards(f"{server.url}/{RANGE}")
    remote.counts = opened.counts
    quick = {"/000000.tar"}
    server.answer = lambda path: (path in quick or time.sleep(20)) and 200
    plan = Plan([Row(np.array([17, 0, 0, 0, 0]), 0)], BATCH)
    batches = make(None, encoder, workers=2, opened=remote, plan=plan).batches(0)
    next(batches)
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 5


def test_a_worker_that_is_killed_ends_the_run_with_an_error(folder, encoder):
    before = set(active_children())
    batches = make(folder, encoder, workers=2).batches(0)
    next(batches)
    started = set(active_children()) - before

    def read_on_without_one():
        os.kill(min(worker.pid for worker in started), signal.SIGKILL)
        deque(batches, maxlen=0)

    with pytest.raises(UserError, match=r"worker .*(killed|exited unexpectedly)") as error:
        read_on_without_one()
    batches.close()
    assert not set(active_children()) & started
    assert error.traceback  # which keeps all that it passed


def test_what_torch_raises_of_a_killed_worker_is_told_and_other_errors_are_not():
    told = worker_error(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."))
    assert "worker that reads samples was killed" in str(told)
    assert worker_error(RuntimeError("Sizes of tensors must match")) is None


COMMAND = "sleep 300 & echo $$ $! > {pids}.part; mv {pids}.part {pids}; wait"
COUNTS_IT = "open_shards({source!r})"
READS_IT = """
encoder = create_encoder(read_config("tiny"))
reader = Reader([name_shards({source!r})], Plan([Resampled(1, 0)], 2), encoder.tokenizer, (32, 32),
                Augmentation(), CaptionChoice.parse("txt"))
next(Loader(reader, workers=1).batches(0))
"""
IMPORTS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests
from data_pipelines.augment import Augmentation
from data_pipelines.captions import CaptionChoice
from data_pipelines.loader import Loader
from data_pipelines.plan import Plan, Resampled
from data_pipelines.reader import Reader
from data_pipelines.shards import name_shards, open_shards
from vlp.encoder import create_encoder, read_config
"""


def eventually(condition, seconds: float = 60) -> bool:
    """Return whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc what is running")
@pytest.mark.parametrize(
    ("code", "how"),
    sometimes(
        [
            (code, how)
            for code in (COUNTS_IT, READS_IT)
            for how in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)
        ],
        often=set(),
    ),
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "",
)
def test_a_command_ends_with_all_that_it_started_when_the_run_is_stopped(code, how, tmp_path):
    pids = tmp_path / "pids"
    code = IMPORTS + code.format(source=f"pipe:{COMMAND.format(pids=pids)}")
    run = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL
    )
    try:
        assert eventually(pids.exists)
        started = [int(pid) for pid in pids.read_text().split()]
        assert all(map(is_running, started))
        run.send_signal(how)
        assert eventually(lambda: not any(map(is_running, started)), seconds=10)
        assert run.wait(20) != 0
    finally:
        run.kill()


def test_a_command_is_not_given_what_is_typed_and_may_leave_its_errors_open(folder):
    source = f"pipe:cat; sleep 0.2 >&2 & cat {folder}/000000.tar"
    assert open_shards(source).counts.tolist() == [17]


def test_the_tallies_of_processes_add_up():
    one, other = Tally(reads=3, substituted=1), Tally(reads=4, captions_cut=2)
    one.seconds["read"], other.seconds["read"] = 1.0, 2.0
    one.bytes_read[0], other.bytes_read[1] = 5, 6
    one.slowest, other.slowest = (0.1, "a"), (0.2, "b")
    one.add(other)
    assert (one.reads, one.substituted, one.captions_cut) == (7, 1, 2)
    assert (one.seconds, one.bytes_read, one.slowest) == ({"read": 3}, {0: 5, 1: 6}, (0.2, "b"))
