"""Names of shards, their places in the cache, and what is known of them without opening them."""

import json
import os
from pathlib import Path

import pytest
from tests_support import pairs

from data_pipelines import tar_index
from data_pipelines.index_files import index_folder
from data_pipelines.shard_cache import cache_folder, cached_path, url_of
from data_pipelines.shard_counts import _beside
from data_pipelines.shards import open_shards, write_shards
from data_pipelines.sources import find_shards, relative_names
from data_pipelines.tar_index import open_index
from vlp.errors import UserError

URLS = [
    "https://host/data/000000.tar",
    "http://127.0.0.1:8000/a.tar",
    "s3://bucket/deep/er/x.tar",
    "gs://bucket/x.tar?versionId=1/2&b=%20#part",
    "hf://datasets/owner/name@main/x.tar",
    "file:///absolute/x.tar",
    "local:///absolute/x.tar",
    "https://host//two//slashes.tar",
    "https://host/a/../../../../b.tar",
    "https://host/./.hidden/.x.tar",
    "https://host/50%25 of é☃\\ and %.tar",
    "https://host/" + "q" * 900 + "/x.tar",
    "https://host/x.tar?token=" + "%2E./" * 300,
    "simplecache::https://host/x.tar",
    "https://host/folder/",
    "pipe:cat /data/000000.tar",
    "pipe:cat /data/x.tar | zstd -d > /dev/stdout; true && echo 'a\"b' \\* %00 %",
    "pipe: ",
    "pipe:.",
    "pipe:cat " + "x" * 196,
    "pipe:cat " + "x" * 2000 + "." * 700,
    "pipe:cat 'a\nb\t\udcff'",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def read_only(shards):
    """Return a folder of shards that nobody may write to."""
    shards.chmod(0o555)
    yield shards
    shards.chmod(0o755)


def files_below(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("url", URLS, ids=range(len(URLS)))
def test_a_url_and_its_place_in_the_cache_say_each_other(url, cache):
    path = cached_path(url)
    assert url_of(path) == url
    assert os.path.normpath(path) == str(path)
    assert path.is_relative_to(cache)
    for part in path.relative_to(cache).parts:
        assert not part.startswith(".")
        assert len(os.fsencode(part)) < 220  # room for `.part`, `.lock` and the name of the index


def test_urls_have_places_of_their_own():
    assert len({cached_path(url) for url in URLS}) == len(URLS)


def test_commands_that_begin_alike_can_both_be_kept():
    paths = [  # parts of a path are 200 signs long
        cached_path(f"pipe:cat {'x' * length}") for length in (195, 196, 197, 391, 392, 400)
    ]
    for path in paths:  # none may be the folder of another
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert all(path.is_file() for path in paths)


def test_the_name_of_a_shard_in_the_cache_is_its_own():
    for url in ("https://host/a/000000.tar", "pipe:cat /data/000000.tar"):
        assert cached_path(url).name == "000000.tar"


def test_what_is_outside_the_cache_has_no_url(cache, tmp_path):
    for path in (tmp_path / "x.tar", cache.parent / "x.tar", cache / ".index" / "x.tar"):
        assert url_of(path) is None
    assert url_of(Path("x.tar")) is None


def test_urls_need_not_exist_to_be_named_and_braces_in_them_are_ranges():
    found = find_shards("https://host/{a,b}/{08..10}.tar")
    assert [url_of(path) for path in found] == [
        f"https://host/{folder}/{number}.tar" for folder in "ab" for number in ("08", "09", "10")
    ]


def test_a_command_keeps_its_backslashes_and_its_braces():
    command = r"pipe:awk '{print $1}' a\ b ${HOME}"
    assert [url_of(path) for path in find_shards(command)] == [command]


def test_a_file_may_have_braces_and_brackets_in_its_name(shards):
    odd = shards / "{0..1}[a].tar"
    (shards / "000000.tar").rename(odd)
    assert find_shards(odd) == find_shards([str(odd)]) == [odd]


def test_several_sources_are_one_after_the_other(shards):
    named = [shards / "000002.tar", "https://host/x.tar", str(shards / "00000[01].tar")]
    names = [path.name for path in find_shards(named)]
    assert names == ["000002.tar", "x.tar", "000000.tar", "000001.tar"]


@pytest.mark.parametrize("source", ["", "  "])
def test_an_empty_name_is_refused(source):
    with pytest.raises(UserError, match="name of the shards is empty"):
        find_shards(source)


def test_names_are_those_below_the_folder_of_all_shards(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    deep = [Path("/data/a/0.tar"), Path("/data/a/0/1.tar"), Path("/data/b/0.tar")]
    assert relative_names(deep) == ["a/0.tar", "a/0/1.tar", "b/0.tar"]
    assert relative_names([Path("/data/a/0.tar")]) == ["0.tar"]
    assert relative_names([Path("a/0.tar"), Path("b/0.tar")]) == ["a/0.tar", "b/0.tar"]
    assert relative_names([Path("a/0.tar"), tmp_path / "b" / "0.tar"]) == ["a/0.tar", "b/0.tar"]
    moved = [cached_path(f"https://host{path}") for path in deep]
    assert relative_names(moved) == relative_names(deep)
    piped = [cached_path(f"pipe:cat {path}") for path in deep]
    assert relative_names(piped) == relative_names(deep)


def test_beside_files_the_names_of_remote_shards_do_not_depend_on_the_cache(monkeypatch, tmp_path):
    named = []
    for cache in ("one", "another/deeper"):
        monkeypatch.setenv("VLP_CACHE", str(tmp_path / cache))
        shards = [Path("/data/0.tar"), cached_path("https://host/a/0.tar?token=a/b")]
        named.append(relative_names(shards))
    assert named[0] == named[1] == ["0.tar", "https://host/a/0.tar?token=a/b"]


def test_the_index_is_written_once_beside_the_shards_and_read_again(shards):
    before = open_shards(shards)
    written = files_below(shards / ".index")
    assert {path.name for path in written} == {
        "counts.parquet", "000000.tar.parquet", "000001.tar.parquet", "000002.tar.parquet"
    }  # fmt: skip
    again = open_shards(shards)
    assert again.counts.tolist() == before.counts.tolist() == [25, 25, 14]
    assert again.entries == before.entries
    assert files_below(shards / ".index") == written


def test_an_index_of_an_unchanged_shard_is_not_made_again(shards, monkeypatch):
    first = open_shards(shards).entries
    monkeypatch.delattr(tar_index, "_build")  # would fail if it were called
    assert open_shards(shards).entries == first


def test_a_changed_shard_is_indexed_anew(shards):
    open_shards(shards)
    write_shards(pairs(7), shards, samples_per_shard=25)
    assert open_shards(shards).counts.tolist() == [7, 25, 14]
    assert len(open_index(shards / "000000.tar")) == 7


@pytest.mark.parametrize("name", ["000000.tar.parquet", "counts.parquet"])
def test_a_damaged_index_is_made_again(shards, name):
    first = open_shards(shards).entries
    path = shards / ".index" / name
    whole = path.read_bytes()
    for damaged in (b"", b"hello", whole[:-20], whole[: len(whole) // 2], whole[50:]):
        path.write_bytes(damaged)
        assert open_shards(shards).entries == first
        assert len(open_index(shards / "000000.tar")) == 25


def test_flipped_bytes_in_an_index_never_move_a_sample(shards):
    open_shards(shards)
    first = [*open_index(shards / "000000.tar")]
    path = shards / ".index" / "000000.tar.parquet"
    whole = path.read_bytes()
    pages = whole.index(b"vlp_index")  # what follows is the footer, which nothing sums up
    for place in range(4, pages, max(1, pages // 60)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        assert [*open_index(shards / "000000.tar")] == first


def test_shards_in_a_read_only_folder_keep_their_index_in_the_cache(read_only, cache):
    before = files_below(read_only)
    first = open_shards(read_only)
    assert [len(s.image) > 0 for s in first] == [True] * 64
    assert files_below(read_only) == before
    written = files_below(cache)
    assert index_folder(read_only / "000000.tar").is_relative_to(cache)
    assert len([path for path in written if path.suffix == ".parquet"]) == 4
    assert open_shards(read_only).entries == first.entries
    assert files_below(cache) == written


def test_where_nothing_can_be_written_shards_are_read_anyway(read_only, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "file"))
    assert len(list(open_shards(read_only))) == 64


def test_counts_stated_in_sizes_json_are_taken_without_opening_a_shard(shards):
    sizes = {"000000.tar": 25, "000001.tar": 20, "000002.tar": 900}
    (shards / "sizes.json").write_text(json.dumps(sizes))
    (shards / "000001.tar").write_bytes(b"no tar")
    found = open_shards(shards)
    assert found.counts.tolist() == [25, 20, 900]
    assert found.is_stated.tolist() == [True] * 3
    assert not (shards / ".index").exists()


def test_shards_that_sizes_json_leaves_out_are_counted(shards):
    (shards / "sizes.json").write_text('{"000001.tar": 3}')
    found = open_shards(shards)
    assert found.counts.tolist() == [25, 3, 14]
    assert found.is_stated.tolist() == [False, True, False]


@pytest.mark.parametrize(
    "text",
    ["", "[1]", '{"000000.tar": "x"}', '{"000000.tar": -1}', '{"000000.tar": 1e999}', "\xff"],
)
def test_a_damaged_sizes_json_says_what_to_write(shards, text):
    (shards / "sizes.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"sizes.json is damaged. Write \{"):
        open_shards(shards)


def test_img2datasets_statistics_state_a_count(shards):
    (shards / "000000_stats.json").write_text('{"count": 30, "successes": 24}')
    for name, text in (("000001", "{}"), ("000002", "torn")):
        (shards / f"{name}_stats.json").write_text(text)
    found = open_shards(shards)
    assert found.counts.tolist() == [24, 25, 14]
    assert found.is_stated.tolist() == [True, False, False]


def test_a_shard_that_is_gone_is_named(shards):
    found = open_shards(shards)
    (shards / "000001.tar").unlink()
    with pytest.raises(UserError, match=r"000001.tar is gone. Put it back"):
        list(found)


def test_a_cap_that_is_no_number_says_what_to_write(monkeypatch, shards):
    monkeypatch.setenv("VLP_CACHE_GB", "much")
    with pytest.raises(UserError, match=r"VLP_CACHE_GB is much\. Write a number"):
        open_shards(f"file://{shards}/000000.tar")


def test_files_of_others_in_the_folder_of_the_cache_are_never_removed(monkeypatch, shards, cache):
    cache.parent.mkdir(parents=True)
    mine = cache.parent / "mine.tar"
    mine.write_bytes(b"x" * 100)
    monkeypatch.setenv("VLP_CACHE_GB", "1e-9")
    open_shards(f"file://{shards}/{{000000..000002}}.tar")
    kept = [path.name for path in cache.rglob("*.tar") if not path.name.startswith(".")]
    assert len(kept) == 1
    assert mine.exists()


def test_a_star_in_a_url_stands_for_the_shards_that_are_there(shards, cache):
    found = open_shards(f"file://{shards}/*.tar")
    assert [shard.name for shard in found.shards] == [f"00000{i}.tar" for i in range(3)]
    assert len(found) == len(open_shards(shards))
    with pytest.raises(UserError, match=r"There are no shards at file://.*/no\*\.tar"):
        open_shards(f"file://{shards}/no*.tar")


def test_many_shards_are_counted_by_processes_as_one_by_one(tmp_path):
    write_shards(pairs(40), tmp_path / "many", samples_per_shard=1)
    assert open_shards(tmp_path / "many").counts.tolist() == [1] * 40


def test_a_file_beside_a_url_keeps_the_query_whatever_that_holds():
    url = "https://host/a/000000.tar?token=x/y"
    assert _beside(url, "sizes.json") == "https://host/a/sizes.json?token=x/y"
    assert _beside("s3://bucket/a/0.tar", "sizes.json") == "s3://bucket/a/sizes.json"
