"""An index from its build to what is left of it after kills, changes and damage."""

import itertools
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from index_support import unit_rows, write_features

from vlp import cli
from vlp.errors import UserError
from vlp.index import build_index, load_index, neighbours
from vlp.index.candidates import candidates, fill, learn_lists, predicted_bytes, train
from vlp.index.change import update_index
from vlp.index.choose import questions
from vlp.index.plan import Plan
from vlp.index.segment import Segment
from vlp.index.tune import one_thread, settings
from vlp.manifest import MANIFEST
from vlp.output import write_json
from vlp.query import Query, find_encoded

ROWS = 40
STEPS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link")


@pytest.fixture
def index(tmp_path):
    """Return an index of 40 rows."""
    write_features(tmp_path / "features", unit_rows(ROWS))
    build_index(tmp_path / "features", tmp_path / "index")
    return tmp_path / "index"


def keys(folder):
    """Return what an index finds when it is asked for everything."""
    opened = load_index(folder)
    hits = opened.hits(unit_rows(1, seed=9)[0], 10_000)
    assert len(hits) == len(opened)
    return sorted(hit.key for hit in hits)


def numbered(*ranges):
    return sorted(f"{n:05d}" for numbers in ranges for n in numbers)


def killed_at(step, change):
    """Make a change in a process that is killed at its n-th step on files; return if it was."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        left = [step]

        def count(event, arguments):
            is_writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
            if event in STEPS or is_writing:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            with one_thread():  # threads do not outlive a fork
                sys.addaudithook(count)
                change()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    "name",
    ["delete", *(pytest.param(n, marks=pytest.mark.slow) for n in ("build", "add", "compact"))],
)
def test_a_change_that_is_killed_at_any_step_leaves_the_last_good_state(name, index, tmp_path):
    write_features(tmp_path / "more", unit_rows(10, seed=1), first=35)
    update_index(index, delete=["00003"])
    changes = {
        "build": lambda folder: build_index(tmp_path / "more", folder, overwrite=True),
        "add": lambda folder: update_index(folder, add=tmp_path / "more"),
        "delete": lambda folder: update_index(folder, delete=["00000", "00007"]),
        "compact": lambda folder: update_index(folder, compact=True),
    }
    before = keys(index)
    copy = tmp_path / "expected"
    shutil.copytree(index, copy)
    changes[name](copy)
    after = keys(copy)
    seen, step = set(), 0
    while True:
        step += 1
        folder = tmp_path / f"copy_{step}"
        shutil.copytree(index, folder)
        was_killed = killed_at(step, lambda folder=folder: changes[name](folder))
        found = keys(folder)
        assert found in (before, after)
        seen.add(tuple(found))
        if not was_killed:
            break
        if name != "delete" or found == before:
            changes[name](folder)  # it can be done again
        assert keys(folder) == after
        update_index(folder, check=True)
        shutil.rmtree(folder)
    assert step > 5
    assert seen == {tuple(before), tuple(after)}


def test_samples_are_added_replaced_deleted_and_compacted_and_keep_their_numbers(index, tmp_path):
    write_features(tmp_path / "more", unit_rows(10, seed=1), first=35)
    result = update_index(index, add=tmp_path / "more")
    assert (result["rows"], result["parts"]) == (45, 2)
    assert keys(index) == numbered(range(45))
    opened = load_index(index)
    new = unit_rows(10, seed=1)
    hit = opened.hits(new[0], 1)[0]
    assert (hit.key, hit.metadata["id"]) == ("00035", 40)
    assert hit.score == pytest.approx(1, abs=1e-6)
    update_index(index, delete=["00035", "00001"])
    assert keys(index) == numbered([0], range(2, 35), range(36, 45))
    ids = {hit.key: hit.metadata["id"] for hit in load_index(index).hits(new[1], 100)}
    size = sum(path.stat().st_size for path in index.rglob("*.npy"))
    assert update_index(index, compact=True)["parts"] == 1
    assert {hit.key: hit.metadata["id"] for hit in load_index(index).hits(new[1], 100)} == ids
    assert sum(path.stat().st_size for path in index.rglob("*.npy")) < size
    update_index(index, add=tmp_path / "more")
    numbers = {hit.key: hit.metadata["id"] for hit in load_index(index).hits(new[1], 100)}
    assert min(numbers[key] for key in numbered(range(35, 45))) == 50  # none is given twice
    with pytest.raises(UserError, match=r"1 of 2 keys are not in the index .*'nobody'"):
        update_index(index, delete=["00002", "nobody"])
    assert "00002" in keys(index)


def test_an_index_is_merged_into_another(index, tmp_path):
    write_features(tmp_path / "more", unit_rows(10, seed=1), first=100)
    build_index(tmp_path / "more", tmp_path / "other")
    update_index(tmp_path / "other", delete=["00101"])
    update_index(index, add=tmp_path / "other")
    assert keys(index) == numbered(range(40), [100], range(102, 110))
    write_features(tmp_path / "else", unit_rows(10, seed=1), model_hash="another")
    with pytest.raises(UserError, match="of another model than the index"):
        update_index(index, add=tmp_path / "else")
    write_features(tmp_path / "wide", unit_rows(10, dim=8))
    with pytest.raises(UserError, match="features of 8 numbers, the index of 16"):
        update_index(index, add=tmp_path / "wide")


def test_parts_are_searched_as_one(tmp_path):
    write_features(tmp_path / "features", unit_rows(ROWS))
    build_index(tmp_path / "features", tmp_path / "one")
    build_index(tmp_path / "features", tmp_path / "parts", rows_per_part=7)
    one, parts = load_index(tmp_path / "one"), load_index(tmp_path / "parts")
    assert len(parts.segments) == 6
    for query in unit_rows(5, seed=3):
        for some, other in zip(one.hits(query, 20), parts.hits(query, 20), strict=True):
            assert some.key == other.key
            assert some.metadata == other.metadata
            assert some.score == pytest.approx(other.score, abs=1e-6)


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_what_is_exported_is_what_the_index_holds(ending, index, tmp_path):
    write_features(tmp_path / "more", unit_rows(5, seed=1), first=50, fields=lambda n: {"x": n / 2})
    update_index(index, add=tmp_path / "more")
    path = tmp_path / f"rows.{ending}"
    update_index(index, delete=["00004"], export=path)
    read = pq.read_table if ending == "parquet" else lambda p: pa.ipc.open_file(p).read_all()
    table = read(path)
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 16)
    assert table["key"].to_pylist() == numbered(range(4), range(5, 40), range(50, 55))
    assert table["id"].to_pylist() == [*range(4), *range(5, 45)]
    assert table["width"].to_pylist() == [*range(4), *range(5, 40), *[None] * 5]
    assert table["x"].to_pylist()[-1] == 27.0
    vectors = np.stack(table["vector"].to_numpy())
    opened, query = load_index(index), unit_rows(1, seed=5)
    places = neighbours(query, vectors, 10)[1][0]
    expected = [hit.key for hit in opened.hits(query[0], 10)]
    assert table["key"].take(pa.array(places)).to_pylist() == expected
    with pytest.raises(UserError, match="is Parquet or Arrow"):
        update_index(index, export=tmp_path / "rows.csv")


def test_building_again_does_nothing_unless_something_changed(index, tmp_path):
    names = {path: path.stat().st_mtime_ns for path in index.rglob("*")}
    build_index(tmp_path / "features", index)
    assert {path: path.stat().st_mtime_ns for path in index.rglob("*")} == names
    with pytest.raises(UserError, match=r"recall was 0\.95, is 0\.5"):
        build_index(tmp_path / "features", index, recall=0.5)
    write_features(tmp_path / "features", unit_rows(12))
    build_index(tmp_path / "features", index)
    assert keys(index) == numbered(range(12))
    update_index(index, delete=["00001"])
    build_index(tmp_path / "features", index)
    assert "00001" not in keys(index)
    write_features(tmp_path / "features", unit_rows(13))
    with pytest.raises(UserError, match="was changed by `vlp update` since"):
        build_index(tmp_path / "features", index)


def test_a_change_of_any_row_or_its_metadata_is_seen(tmp_path):
    rows = unit_rows(1000)
    write_features(tmp_path / "features", rows)
    write_json(tmp_path / "features" / MANIFEST, {"files": "hashes"})
    build_index(tmp_path / "features", tmp_path / "index")
    fields = lambda n: {"width": n + (n == 1)}  # noqa: E731
    write_features(tmp_path / "features", rows, fields=fields)
    build_index(tmp_path / "features", tmp_path / "index")
    assert load_index(tmp_path / "index").matching(("width=2",)).sum() == 2
    rows[1] = -rows[1]
    write_features(tmp_path / "features", rows, fields=fields)
    write_json(tmp_path / "features" / MANIFEST, {"files": "other hashes"})
    build_index(tmp_path / "features", tmp_path / "index")
    found = load_index(tmp_path / "index").vectors(np.arange(2))
    np.testing.assert_allclose(found, rows[:2], atol=1e-6)


def test_a_damaged_index_is_built_again_as_its_message_says(index, tmp_path):
    cut_vectors(index, None)
    with pytest.raises(UserError, match="Build it again: `vlp index` with --overwrite"):
        build_index(tmp_path / "features", index)
    build_index(tmp_path / "features", index, overwrite=True)
    assert keys(index) == numbered(range(ROWS))


def test_what_only_reads_an_index_writes_nothing_into_it(index, tmp_path):
    (index / ".lock").mkdir()  # so that nobody can lock it
    update_index(index, check=True, export=tmp_path / "rows.parquet")
    assert pq.read_metadata(tmp_path / "rows.parquet").num_rows == ROWS


def test_nothing_is_changed_before_an_export_that_cannot_be_written(index, tmp_path):
    with pytest.raises(UserError, match="is Parquet or Arrow"):
        update_index(index, delete=["00001"], export=tmp_path / "rows.csv")
    assert keys(index) == numbered(range(ROWS))


def test_a_number_that_is_whole_in_one_part_only_stays_a_number_in_the_export(index, tmp_path):
    write_features(tmp_path / "more", unit_rows(3), first=100, fields=lambda n: {"width": 0.5})
    update_index(index, add=tmp_path / "more", export=tmp_path / "rows.parquet")
    assert pq.read_table(tmp_path / "rows.parquet")["width"].to_pylist()[-4:] == [39, 0.5, 0.5, 0.5]


def test_a_condition_holds_in_the_parts_whose_field_is_of_its_type(index, tmp_path):
    write_features(tmp_path / "more", unit_rows(3), first=100, fields=lambda n: {"width": "wide"})
    update_index(index, add=tmp_path / "more")
    opened = load_index(index)
    assert opened.matching(("width=wide",)).sum() == 3
    with pytest.raises(UserError, match="width is a number, and 'narrow' is none"):
        opened.matching(("width=narrow",))


def test_product_codes_of_fewer_rows_than_codes_are_refused(tmp_path):
    write_features(tmp_path / "features", unit_rows(16))
    with pytest.raises(UserError, match=r"learnt from 16 rows or more\. Leave out --kind"):
        build_index(tmp_path / "features", tmp_path / "index", kind="ivf_pq", rows_per_part=15)
    build_index(tmp_path / "features", tmp_path / "index", kind="ivf_pq")


def clustered(count, dim=32, seed=0):
    """Return rows of 50 topics, and texts about them that lie elsewhere."""
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(50, dim))
    seen = topics[rng.integers(0, 50, count)] + 0.5 * rng.normal(size=(count, dim))
    texts = seen[:2000] + 0.5 * rng.normal(size=(2000, dim)) + rng.normal(size=dim)
    unit = lambda rows: (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("f4")  # noqa: E731
    return unit(seen), unit(texts)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [None, 3_000_000, 900_000])
def test_the_index_reaches_its_recall_within_its_memory_with_queries_it_has_not_seen(
    memory, tmp_path
):
    rows, texts = clustered(22_000)
    write_features(tmp_path / "features", rows, texts=texts[:1500])
    build_index(tmp_path / "features", tmp_path / "index", recall=0.9, memory=memory)
    opened = load_index(tmp_path / "index")
    asked = texts[1500:]
    exact, found = neighbours(asked, rows, 10)[1], opened.neighbours(asked, 10)[1]
    assert (found[:, :, None] == exact[:, None, :]).any(1).mean() >= 0.9
    report = json.loads((tmp_path / "index" / "report.json").read_text())
    enough = [trial for trial in report["trials"] if trial["is_enough"]]
    fastest = min(enough, key=lambda trial: trial["milliseconds"])
    assert report["chosen"] == fastest["plan"]
    assert report["asked"]["queries"] == "captions"
    for trial in report["trials"]:
        assert trial["bytes"] == pytest.approx(trial["predicted_bytes"], rel=0.03)
        assert memory is None or trial["bytes"] <= memory
    html = (tmp_path / "index" / "report.html").read_text()
    assert all(trial["plan"]["kind"] in html for trial in report["trials"])
    quick = opened.segments[0].folder / "quick.faiss"
    assert memory is None or quick.stat().st_size <= memory
    write_features(tmp_path / "more", rows[:30], first=90_000)
    update_index(tmp_path / "index", add=tmp_path / "more", delete=["00000"], compact=True)
    again = load_index(tmp_path / "index")
    assert len(again) == 22_029
    assert again.segments[0].plan == opened.segments[0].plan
    assert "90005" in [hit.key for hit in again.hits(rows[5], 5)]


@pytest.mark.slow
def test_a_prefix_with_ranking_by_full_vectors_gives_their_cosines(tmp_path):
    rows, texts = clustered(3000)
    write_features(tmp_path / "features", rows, texts=texts)
    build_index(tmp_path / "features", tmp_path / "index", prefix=16, recall=0.8)
    opened = load_index(tmp_path / "index")
    assert opened.segments[0].quick.d == 16
    cosines, found = opened.neighbours(texts[:50], 10)
    np.testing.assert_allclose(cosines, (texts[:50, None] * rows[found]).sum(2), atol=1e-5)
    with pytest.raises(UserError, match="No index reaches a recall of 1"):
        build_index(tmp_path / "features", tmp_path / "other", prefix=2, recall=1)
    with pytest.raises(UserError, match="Give fewer than the 32 coordinates"):
        build_index(tmp_path / "features", tmp_path / "other", prefix=32)


@pytest.mark.slow
def test_every_kind_is_found_through_with_conditions_and_without_what_was_deleted(tmp_path):
    rows, texts = clustered(4000)
    allowed = np.arange(4000) % 3 == 0
    exact = neighbours(texts[:50], rows, 10, allowed=allowed)[1]

    for plan in candidates(4000, 32, 500_000, None):
        centroids = learn_lists(rows, 64, None)
        quick = fill(train(plan, rows, centroids), plan, rows)
        best = replace(plan, effort=64, refine=16)
        segment = Segment(Path(), rows, pa.table({}), best, quick, None)
        found = segment.search(texts[:50], 10, allowed)[1]
        assert (found % 3 == 0).all()
        assert (found[:, :, None] == exact[:, None, :]).any(1).mean() > 0.9, plan
        few = np.arange(4000) < 7
        found = segment.search(texts[:5], 10, few)[1]
        assert (np.sort(found, 1) == [-1, -1, -1, *range(7)]).all()


@pytest.mark.slow
def test_the_recall_holds_for_more_hits_and_where_a_part_of_the_rows_may_be_found():
    rows, texts = clustered(22_000)
    tune, measure = questions(rows, texts)
    centroids = learn_lists(rows, 256, None)
    for kind in ("IVF256,Flat", "IVF256,SQ8", "IVF256,PQ16x4fsr", "HNSW32"):
        plan = Plan(kind=kind)
        quick = fill(train(plan, rows, centroids), plan, rows)
        segment = Segment(Path(), rows, pa.table({}), plan, quick, None)
        tuned, is_enough = next(iter(settings(segment, tune, 0.95)))
        assert is_enough
        segment = replace(segment, plan=tuned)
        for k, share in itertools.product((10, 100), (1, 0.5, 0.15)):
            allowed = np.random.default_rng(0).random(len(rows)) < share
            asked = measure.vectors[:200]
            least = neighbours(asked, rows, k, allowed=allowed)[0][:, -1:]
            cosines, found = segment.search(asked, k, allowed)
            assert allowed[found].all()
            assert (cosines >= least - 1e-5).mean() > 0.94, (kind, k, share)


def test_copies_of_a_picture_are_as_good_as_the_picture():
    rows = np.repeat(unit_rows(9), 40, axis=0)
    tune, measure = questions(rows, unit_rows(30, seed=1))
    copies = rows.reshape(9, 40, 16)[:, ::-1].reshape(-1, 16)
    other_copies = Segment(Path(), copies, pa.table({}), Plan(), None, None)
    assert tune.recall(other_copies).mean() == 1
    farther = replace(other_copies, deleted=np.arange(360) % 40 < 35)
    assert measure.recall(farther).mean() == 0.5


@pytest.mark.slow
def test_more_hits_than_the_lists_looked_into_hold_are_found_all_the_same(tmp_path):
    rows, texts = clustered(22_000)
    write_features(tmp_path / "features", rows, texts=texts)
    build_index(tmp_path / "features", tmp_path / "index", recall=0.05, memory=900_000)
    opened = load_index(tmp_path / "index")
    assert opened.segments[0].plan.kind.startswith("IVF")
    assert len(opened.hits(texts[0], 21_000)) == 21_000


def test_memory_that_nothing_fits_into_is_refused_before_anything_is_built(tmp_path):
    write_features(tmp_path / "features", unit_rows(500))
    with pytest.raises(UserError, match=r"No index of 500 rows takes 1,000 bytes or less"):
        build_index(tmp_path / "features", tmp_path / "index", memory=1000)
    assert predicted_bytes("exact", 500, 16) == 32_000
    assert [plan.kind for plan in candidates(500, 16, 32_000, None)] == ["exact"]


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("exact", "exact"),
        ("ivf_flat", "IVF64,Flat"),
        ("ivf_sq", "IVF64,SQ8"),
        ("ivf_pq", "IVF64,PQ"),
        ("hnsw", "HNSW32"),
        ("hnsw_sq", "HNSW32_SQ8"),
    ],
)
def test_a_kind_that_is_named_is_built_whatever_would_be_faster(kind, made, tmp_path):
    write_features(tmp_path / "features", unit_rows(300), texts=unit_rows(40, seed=1))
    build_index(tmp_path / "features", tmp_path / "index", kind=kind, recall=0.9)
    opened = load_index(tmp_path / "index")
    assert opened.segments[0].plan.kind.startswith(made)
    exact, _ = neighbours(unit_rows(20, seed=2), unit_rows(300), 10)
    found, rows = opened.neighbours(unit_rows(20, seed=2), 10)
    true = (unit_rows(20, seed=2)[:, None] * unit_rows(300)[rows]).sum(2)
    np.testing.assert_allclose(found, true, atol=1e-5)
    assert (found >= exact[:, -1:] - 1e-5).mean() >= 0.9
    page = (tmp_path / "index" / "report.html").read_text()
    assert ('<div class="beside"><figure>' in page) == (kind != "exact")  # as other pages' plots


def test_an_index_that_outgrows_what_it_was_built_for_says_so(tmp_path, capsys):
    write_features(tmp_path / "features", unit_rows(100))
    build_index(tmp_path / "features", tmp_path / "index", memory=8000)
    write_features(tmp_path / "more", unit_rows(100, seed=1), first=100)
    update_index(tmp_path / "index", add=tmp_path / "more")
    assert "takes 12,800 bytes, more than the 8,000" in capsys.readouterr().err
    update_index(tmp_path / "index", delete=["00000"], check=True)
    write_features(tmp_path / "many", unit_rows(40_001, dim=4))
    build_index(tmp_path / "many", tmp_path / "large", kind="exact")
    update_index(tmp_path / "large", check=True)
    assert "40,001 rows" in capsys.readouterr().err


def cut_vectors(index, features):
    path = index / "segments" / "000001" / "vectors.npy"
    path.write_bytes(path.read_bytes()[:-100])


def change_vectors(index, features):
    path = index / "segments" / "000001" / "vectors.npy"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")


def remove_metadata(index, features):
    (index / "segments" / "000001" / "metadata.arrow").unlink()


def cut_state(index, features):
    (index / "state.json").write_text('{"segments"')


def shorten_metadata(index, features):
    path = features / "metadata" / "metadata_0.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)


def write_nan(index, features):
    rows = unit_rows(ROWS)
    rows[7, 3] = np.nan
    write_features(features, rows)


def write_zeros(index, features):
    rows = unit_rows(ROWS)
    rows[9] = 0
    write_features(features, rows)


def empty(index, features):
    write_features(features, unit_rows(ROWS)[:0])


def leave(index, features):
    pass


BUILD, SEARCH = ("index", "FEATURES", "NEW"), ("search", "INDEX", "a dog")
BROKEN = [
    (cut_vectors, SEARCH, "vectors.npy has 2,588 of 2,688 bytes"),
    (change_vectors, ("update", "INDEX", "--check"), "vectors.npy is not as it was written"),
    (remove_metadata, SEARCH, "No such file or directory"),
    (cut_state, SEARCH, "state.json"),
    (shorten_metadata, BUILD, "has 40 features but 39 rows of metadata"),
    (write_nan, BUILD, "The feature of 00007 (row 7) has numbers that are not finite, such as NaN"),
    (write_zeros, BUILD, "The feature of 00009 (row 9) is all zeros. Run `vlp embed` again"),
    (empty, BUILD, "an empty set cannot be searched"),
    (leave, (*BUILD, "--memory", "much"), "The memory 'much' is no size. Write it as 2GB"),
    (leave, (*BUILD, "--recall", "1.5"), "Ask for more than 0 and at most 1"),
    (leave, ("update", "INDEX"), "Nothing to do. Give --add"),
    (leave, ("update", "FEATURES", "--compact"), "holds no index"),
    (leave, SEARCH, "--model names another"),
]


@pytest.mark.parametrize(("harm", "words", "told"), BROKEN)
def test_what_is_broken_is_said_in_one_line(harm, words, told, index, tmp_path, capsys):
    harm(index, tmp_path / "features")
    names = {"FEATURES": "features", "INDEX": "index", "NEW": "new"}
    argv = [str(tmp_path / names[word]) if word in names else word for word in words]
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    said = capsys.readouterr().err.strip()
    assert end.value.code == 2
    assert told in said
    assert "\n" not in said


def test_near_duplicates_are_folded_until_enough_are_left(tmp_path):
    rows = np.repeat(unit_rows(20), 8, axis=0) + 0.01 * unit_rows(160, seed=2)
    write_features(tmp_path / "features", rows.astype(np.float32))
    build_index(tmp_path / "features", tmp_path / "index")
    opened = load_index(tmp_path / "index")
    query = Query(texts=(("x", 1),), k=6, fold=0.94)
    hits = find_encoded(opened, unit_rows(1, seed=4)[0], query)
    assert len(hits) == 6
    assert len({int(hit.key) // 8 for hit in hits}) == 6
    assert all(int(key) // 8 == int(hit.key) // 8 for hit in hits for key in hit.folded)
    assert len(hits[0].folded) == 7
    page = find_encoded(
        opened, unit_rows(1, seed=4)[0], Query(texts=(("x", 1),), k=3, offset=3, fold=0.94)
    )
    assert [hit.key for hit in page] == [hit.key for hit in hits[3:]]
