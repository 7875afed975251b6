"""The cache of shards: what makes room for what, and what killed processes leave."""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.shard_cache import cache_folder, cached_path, ensure, hold

SIZE = 1000


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Return a cache with room for two of the shards."""
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLP_CACHE_GB", str(2.5 * SIZE / 1e9))
    return cache_folder()


@pytest.fixture
def paths(tmp_path):
    """Return the places in the cache of four shards that can be fetched."""
    for number in range(4):
        (tmp_path / f"{number}.tar").write_bytes(bytes(SIZE))
    return [cached_path(f"file://{tmp_path}/{number}.tar") for number in range(4)]


def there(paths) -> list[int]:
    return [number for number, path in enumerate(paths) if path.exists()]


def test_the_shard_that_was_used_least_recently_makes_room(paths):
    for number in (0, 1, 0, 2):
        ensure(paths[number])
    assert there(paths) == [0, 2]


def test_a_shard_that_is_held_stays_until_it_is_let_go(paths):
    held = hold(paths[0])
    assert held
    for number in (1, 2, 3):
        ensure(paths[number])
    assert there(paths) == [0, 3]
    held.close()
    ensure(paths[1])
    assert there(paths) == [1, 3]


def test_the_cap_is_kept_although_everything_is_held(paths):
    held = [hold(path) for path in paths[:3]]
    assert there(paths) == [1, 2]
    for file in held:
        assert file
        assert len(file.read()) == SIZE  # whoever holds a shard can read it to its end
        file.close()


def test_what_a_killed_process_held_is_free(paths):
    code = f"""
import os, signal
from pathlib import Path
from data_pipelines.shard_cache import hold
held = hold(Path({str(paths[0])!r}))
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    assert ended.returncode == -9
    assert there(paths) == [0]
    for number in (1, 2):
        ensure(paths[number])
    assert there(paths) == [1, 2]


def test_half_a_shard_that_nobody_is_fetching_is_removed_with_the_next_fetch(paths):
    ensure(paths[0])
    folder = paths[0].parent
    stale, fetching = folder / ".8.tar.part", folder / ".9.tar.part"
    for path in (stale, fetching):
        path.write_bytes(b"half a tar")
    with (folder / ".9.tar.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as the process does that fetches it
        ensure(paths[1])
        assert (stale.exists(), fetching.exists()) == (False, True)
    ensure(paths[2])
    assert not fetching.exists()
