"""Requests a second and their latency: `vlp serve` against clip-retrieval 2.45.0's `back`.

    python tests/benchmarks/service.py                      # on drawn scenes
    python tests/benchmarks/service.py DATA                 # on a folder of shards
    python tests/benchmarks/service.py --quick              # ours alone, for a moment: does it run?

Both have the same checkpoint (ViT-S-32, random weights: what it finds is nonsense, how long it
takes is not), the same features in an exact faiss index, and the same threads. They are asked for
40 hits by text, in turns, each time in a new process: 1, 8 and 32 clients, each of which asks again
when it has its answer. No text is asked twice and nothing is remembered, but in the rows named
"remembered". The peer runs in an environment that is made once under `.bench/`.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import torch
from peers.clip_retrieval_back import PACKAGES
from peers.environment import environment

from data_pipelines import toy
from data_pipelines.embed import embed
from data_pipelines.engine import Engine
from data_pipelines.shards import write_shards
from vlp.checkpoint import load_encoder, save_encoder
from vlp.console import show, show_table
from vlp.encoder import create_encoder, read_config
from vlp.features import stack
from vlp.index import build_index

CACHE = Path(__file__).parents[2] / ".bench"
PEER = Path(__file__).parent / "peers" / "clip_retrieval_back.py"
ARCHITECTURE = "ViT-S-32"
CLIENTS = (1, 8, 32)
HITS = 40
WORDS = (
    "a the red blue small large old happy dog cat house tree person heart star flag face hand car "
    "on under beside with without smiling sleeping running wooden golden open broken two three"
)
START_SECONDS = 180


@dataclass(frozen=True)
class Figures:
    """What clients saw of a service."""

    per_second: float
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Contestant:
    """A service: how it is started and asked, and whether it answered well."""

    command: list[str]
    path: str
    body: Callable[[str], dict]
    count: Callable[[bytes], int]
    ready: str


def main() -> None:
    options = parse()
    folder = CACHE / ("service_quick" if options.quick else "service")
    architecture = "tiny" if options.quick else ARCHITECTURE
    index = prepared(folder, options.data, architecture)
    seconds = 0.5 if options.quick else options.seconds
    threads = str(options.threads)
    texts = unique_texts()
    ours = {
        "unique": our_service(index, remember=0),
        "remembered": our_service(index, remember=10_000),
    }
    if options.quick:
        with started(ours["unique"], threads) as (port, _):
            rows = [
                ("vlp", n, *row(measure(ours["unique"], port, n, seconds, texts))) for n in (1, 4)
            ]
        show_table(("", "clients", "requests/s", "p50 ms", "p95 ms"), rows)
        return
    peer = peer_service(environment(CACHE / "clip_retrieval", PACKAGES), index, folder)
    compare(ours, peer, threads, seconds, options.pairs, texts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, help="folder of shards")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each service")
    parser.add_argument("--seconds", type=float, default=6, help="of each measurement")
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each side, in turns")
    parser.add_argument("--quick", action="store_true", help="ours alone, for a moment")
    return parser.parse_args()


def prepared(folder: Path, data: Path | None, architecture: str) -> Path:
    """Return an index of the data by a model of random weights, made once."""
    model, shards = folder / "model", data or folder / "shards"
    if not data and not shards.exists():
        write_shards(toy.draw_evaluation(500, 0), shards)
    if not model.exists():
        torch.manual_seed(0)
        model.mkdir(parents=True)
        save_encoder(create_encoder(read_config(architecture)), model)
    embed(str(model), str(shards), folder / "features", only="images", engine=Engine(kind="pool"))
    build_index(folder / "features", folder / "index", recall=1.0)  # as the peer's, which is exact
    return folder / "index"


def our_service(index: Path, *, remember: int) -> Contestant:
    command = [sys.executable, "-m", "vlp", "serve", str(index), "--port", "PORT"]
    return Contestant(
        command=[*command, "--remember", str(remember)],
        path="/search",
        body=lambda text: {"terms": [{"text": text}], "k": HITS},
        count=lambda answer: len(json.loads(answer)["hits"]),
        ready="/ready",
    )


def peer_service(python: Path, index: Path, folder: Path) -> Contestant:
    """Return clip-retrieval's service over the same features and weights."""
    theirs, weights = folder / "clip_retrieval", folder / "weights.pt"
    theirs.mkdir(exist_ok=True)
    torch.save(open_clip_weights(folder / "model"), weights)
    features = np.ascontiguousarray(stack(folder / "features", "image")[:], np.float32)
    exact = faiss.IndexFlatIP(features.shape[1])
    exact.add(features)
    faiss.write_index(exact, str(theirs / "image.index"))
    if not (theirs / "metadata").exists():
        (theirs / "metadata").symlink_to((folder / "features" / "metadata").resolve())
    (folder / "indices.json").write_text(json.dumps({"data": str(theirs.resolve())}))
    options = {
        "indices_paths": str(folder / "indices.json"),
        "port": "PORT",
        "clip_model": f"open_clip:{ARCHITECTURE}/{weights.resolve()}",
        "use_jit": False,
        "enable_mclip_option": False,
        "provide_aesthetic_embeddings": False,
        "columns_to_return": ["key", "caption", "metadata"],
    }
    asked = {"modality": "image", "num_images": HITS, "num_result_ids": HITS, "indice_name": "data"}
    return Contestant(
        command=[str(python), str(PEER), json.dumps(options).replace('"PORT"', "PORT")],
        path="/knn-service",
        body=lambda text: {"text": text, "deduplicate": False, **asked},
        count=lambda answer: len(json.loads(answer)),
        ready="/indices-list",
    )


def open_clip_weights(model: Path) -> dict[str, torch.Tensor]:
    """Return the weights as open_clip's own ViT-S-32 names them: its text tower has no prefix."""
    from vlp.encoder import open_clip_weights

    state = open_clip_weights(load_encoder(model))
    return {name.removeprefix("text."): value for name, value in state.items()}


@contextmanager
def started(service: Contestant, threads: str) -> Iterator[tuple[int, float]]:
    """Yield the port of a service that answers, and the seconds until it did."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [word.replace("PORT", str(port)) for word in service.command]
    environ = {**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    with (CACHE / "service.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
    try:
        while not answers(port, service.ready):
            if process.poll() is not None or time.perf_counter() - began > START_SECONDS:
                sys.exit(f"{command} did not start; see {CACHE / 'service.log'}.")
            time.sleep(0.02)
        yield port, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


def answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=1) as answer:
            return answer.status == 200
    except OSError:
        return False


def unique_texts() -> Iterator[str]:
    """Yield captions of 4 to 10 words, none of them twice."""
    rng, words = random.Random(0), WORDS.split()
    for number in itertools.count():
        chosen = rng.choices(words, k=rng.randint(3, 9))
        yield " ".join([*chosen, str(number)])


def measure(
    service: Contestant, port: int, clients: int, seconds: float, texts: Iterator[str]
) -> Figures:
    """Return what so many clients see, each asking again when it has its answer."""
    latencies: list[float] = []

    async def ask(end: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (now := time.perf_counter()) < end:
            body = json.dumps(service.body(next(texts))).encode()
            head = f"POST {service.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            status, length, is_open = parsed(await reader.readuntil(b"\r\n\r\n"))
            answer = await reader.readexactly(length)
            if status != 200 or service.count(answer) != HITS:
                sys.exit(f"{service.path} answered {status}: {answer[:300]!r}")
            latencies.append(time.perf_counter() - now)
            if not is_open:
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    async def all_clients() -> float:
        began = time.perf_counter()
        await asyncio.gather(*(ask(began + seconds) for _ in range(clients)))
        return time.perf_counter() - began

    took = asyncio.run(all_clients())
    ordered = sorted(1000 * latency for latency in latencies)
    p50, p95 = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.95))
    return Figures(len(latencies) / took, p50, p95)


def parsed(head: bytes) -> tuple[int, int, bool]:
    """Return status, length of the body, and whether the connection stays open."""
    version_and_status, *lines = head.decode("latin-1").split("\r\n")
    fields = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    version, status = version_and_status.split()[:2]
    keeps = fields.get("connection", "").lower() != "close" and version == "HTTP/1.1"
    return int(status), int(fields["content-length"]), keeps


def compare(
    ours: dict[str, Contestant],
    peer: Contestant,
    threads: str,
    seconds: float,
    pairs: int,
    texts: Iterator[str],
) -> None:
    """Measure both in turns and show medians, and how long each takes to be ready."""
    found: dict[tuple[str, int], list[Figures]] = {}
    ready: dict[str, list[float]] = {}
    for _ in range(pairs):
        for name, service in (("clip-retrieval", peer), ("vlp", ours["unique"])):
            with started(service, threads) as (port, took):
                ready.setdefault(name, []).append(took)
                measure(service, port, 1, 1.0, texts)  # warm-up
                for clients in CLIENTS:
                    figures = measure(service, port, clients, seconds, texts)
                    found.setdefault((name, clients), []).append(figures)
        ready.setdefault("import open_clip", []).append(import_seconds(threads))
    with started(ours["remembered"], threads) as (port, _):
        few = itertools.cycle([next(texts) for _ in range(100)])
        measure(ours["remembered"], port, 1, 1.0, few)
        for clients in CLIENTS:
            figures = measure(ours["remembered"], port, clients, seconds, few)
            found["vlp, remembered", clients] = [figures]
    show_comparison(found, ready, threads)


def show_comparison(
    found: dict[tuple[str, int], list[Figures]], ready: dict[str, list[float]], threads: str
) -> None:
    rows = []
    for (name, clients), figures in sorted(
        found.items(), key=lambda item: (item[0][1], item[0][0])
    ):
        own, theirs = median(figures), found["clip-retrieval", clients]
        ratio = own.per_second / median(theirs).per_second
        each = [
            mine.per_second / its.per_second for mine, its in zip(figures, theirs, strict=False)
        ]
        spread = f"{min(each):.1f}-{max(each):.1f}"
        rows.append((clients, name, *row(own), f"{ratio:.1f}", spread))
    show(f"{threads} threads, {len(found['vlp', 1])} measurements of each in turns, medians:")
    show_table(("clients", "service", "requests/s", "p50 ms", "p95 ms", "ratio", "spread"), rows)
    taken = {name: statistics.median(seconds) for name, seconds in ready.items()}
    show("\nSeconds until ready: " + ", ".join(f"{name} {t:.1f}" for name, t in taken.items()))
    show(f"vlp is ready {taken['vlp'] - taken['import open_clip']:.1f} s after that import.")


def median(figures: list[Figures]) -> Figures:
    columns = zip(*((f.per_second, f.p50_ms, f.p95_ms) for f in figures), strict=True)
    return Figures(*(statistics.median(column) for column in columns))


def row(figures: Figures) -> tuple[str, ...]:
    return (f"{figures.per_second:.1f}", f"{figures.p50_ms:.1f}", f"{figures.p95_ms:.1f}")


def import_seconds(threads: str) -> float:
    began = time.perf_counter()
    environ = {**os.environ, "OMP_NUM_THREADS": threads}
    subprocess.run([sys.executable, "-c", "import open_clip"], check=True, env=environ)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
