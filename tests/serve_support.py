"""A service as a person starts it, for tests that ask it over HTTP."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from tests_support import pairs

from data_pipelines.embed import embed
from data_pipelines.engine import Engine
from data_pipelines.shards import write_shards
from vlp.index import build_index
from vlp.types import Sample

HOSTILE = "<img src=x onerror=\"document.title='caught'\"><script>document.title='caught'</script>"
"""What would change the title of a page that took text for markup."""


@dataclass(frozen=True)
class Served:
    """A service at work."""

    url: str
    process: subprocess.Popen
    token: str | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = re.findall(r"//(.+):(\d+)/", self.url)[0]
        return host, int(port)

    def client(self, **options) -> httpx.Client:
        """Return a client that brings the token."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, **options)

    def peak_bytes(self) -> int:
        """Return the most memory that the process has held."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


def make_index(model: Path, folder: Path, count: int = 96) -> Path:
    """Return an index of drawn pictures; a caption and metadata of the first are hostile."""
    samples = [
        Sample(one.key, one.image, one.text, {**one.metadata, "number": i, "lot": "abc"[i % 3]})
        for i, one in enumerate(pairs(count))
    ]
    about = {**samples[0].metadata, "colour": HOSTILE, HOSTILE: HOSTILE}
    samples[0] = Sample(samples[0].key, samples[0].image, HOSTILE, about)
    write_shards(samples, folder / "shards")
    embed(str(model), str(folder / "shards"), folder / "features", engine=Engine(kind="inline"))
    build_index(folder / "features", folder / "index")
    return folder / "index"


@contextmanager
def serving(index: Path, *options: str, token: str | None = None):
    """Yield a service of the index that has opened its port; it is told to end after the block."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if token:
        environment["VLP_TOKEN"] = token
    process = subprocess.Popen(
        [sys.executable, "-m", "vlp", "serve", str(index), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+?/(?=\s|\?|$)", line)
        assert found, line + (process.stderr.read() if process.stderr else "")
        yield Served(found[0], process, token)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
