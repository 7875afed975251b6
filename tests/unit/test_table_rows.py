"""Rows of tables: what filters say of many at once is what they say of each."""

from importlib import import_module

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.curation import table_rows
from data_pipelines.curation.candidates import open_candidates
from data_pipelines.curation.rules import FAMILY, Filter, read_rules
from data_pipelines.curation.sheet import Sheet
from data_pipelines.curation.table_rows import open_rows
from data_pipelines.curation.tables import table_keys
from data_pipelines.engine import Engine
from data_pipelines.filter import filter_shards
from vlp.errors import UserError
from vlp.spec import names

OPTIONS = {"metadata_number": "field='number', top=0.3"}
TEXTS = [
    "a red square",
    None,
    "",
    " \t\n",
    "no\u00a0break",
    "wide\u3000space and\u2003em",
    "line\u2028separated\x1cfile\x85next",
    "\u200bzero width is no space",
    "  trimmed at   both ends ",
    "ein Hund spielt im Schnee vor dem Haus",
    "東京の夜景",
    "🌊 👩‍👩‍👧 flags 🇫🇷",
    "ПРИВЕТ МИР, КАК ДЕЛА",
    "a dog in the snow " * 400,
    "x" * 20_000,
    "e\u0301 combining",
    "ALL CAPITALS ARE LOWERED",
    "0",
]


def strange(path, **options):
    """Write a table in which much is missing, and return its path."""
    count = len(TEXTS)
    odd = [300, None, 0, -5, float("nan"), float("inf"), 1e300, 299.9, 2.0**31, 0.4]
    columns = {
        "uid": [f"{n:032x}" for n in range(count)],
        "text": TEXTS,
        "original_width": pa.array([odd[n % len(odd)] for n in range(count)], pa.float64()),
        "original_height": pa.array([200 + n for n in range(count)], pa.int64()),
        "width": pa.array([None if n % 3 else 640 for n in range(count)], pa.int32()),
        "height": pa.array([None if n % 4 else 480 for n in range(count)], pa.int32()),
        "number": pa.array([odd[-n % len(odd)] for n in range(count)], pa.float64()),
        "status": ["failed_to_download" if n % 7 == 5 else "success" for n in range(count)],
    } | options
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    pq.write_table(table, path, row_group_size=7)
    return path


def at_once():
    """Return the names of the filters that score rows at once."""
    found = {name: import_module(f"{FAMILY}.{name}") for name in names(FAMILY)}
    return [
        name
        for name, module in found.items()
        if getattr(module, name.title().replace("_", "")).score_rows is not Filter.score_rows
    ]


def said(part, path, rows, *, together):
    """Return values and status of some rows, scored together or one after another."""
    count = len(TEXTS)
    sheet = Sheet({"it": part}, {"it": np.isin(np.arange(count), rows)})
    if together:
        for some in open_rows(path, rows):
            sheet.fill_rows(some)
    else:
        sheet.fill(zip(rows, open_candidates(path, rows), strict=True))
    values, status = sheet.merged("it", pa.nulls(count), pa.nulls(count))
    return values.to_pylist(), status.to_pylist()


def test_filters_of_one_field_score_rows_at_once():
    assert {"caption_words", "image_side", "language", "metadata_number"} <= set(at_once())


@pytest.mark.parametrize("name", at_once())
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"status": None},
        {"original_width": None},
        {"original_width": ["300"] * len(TEXTS)},
        {"number": [["1.5", "x", None][n % 3] for n in range(len(TEXTS))]},
        {"text": None, "caption": TEXTS[::-1]},
        {"text": None},
        {"text": list(range(len(TEXTS)))},
        {"cls": [3] * len(TEXTS)},
    ],
    ids=lambda options: " ".join(options) or "all",
)
def test_what_is_said_of_rows_at_once_is_what_is_said_of_each(tmp_path, monkeypatch, name, options):
    path = strange(tmp_path / "a.parquet", **options)
    monkeypatch.setattr(table_rows, "WINDOW", 4)
    ((_, ((_, part),)),) = read_rules([f"{name}({OPTIONS.get(name, '')})"])
    for rows in (list(range(len(TEXTS))), [1, 3, 6, 7, 13, 17], []):
        each = said(part, path, rows, together=False)
        assert said(part, path, rows, together=True) == each
        assert [told is not None for told in each[1]] == [n in rows for n in range(len(TEXTS))]


def test_rows_come_in_windows_that_are_read_where_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(table_rows, "WINDOW", 3)
    path = strange(tmp_path / "a.parquet")
    wanted = [0, 1, 2, 3, 6, 8, 16, 17]
    found = list(open_rows(path, wanted))
    assert [rows.places.tolist() for rows in found] == [[0, 1, 2], [3, 6], [8], [16, 17]]
    keys = [int(one.key, 16) for one in open_candidates(path, wanted)]
    assert keys == wanted


def test_captions_that_are_not_utf8_fail_alone(tmp_path):
    data = [b"a dog runs", b"bad \xff\xfe", b"a cat sleeps"]
    text = pa.array(data, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    ((_, ((_, part),)),) = read_rules(["caption_words"])
    sheet = Sheet({"it": part}, {"it": np.ones(3, bool)})
    for some in open_rows(tmp_path / "a.parquet", range(3)):
        sheet.fill_rows(some)
    values, status = sheet.merged("it", pa.nulls(3), pa.nulls(3))
    assert values.to_pylist() == [3, None, 3]
    assert status.to_pylist() == ["ok", "failed: no caption", "ok"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string_view()])
def test_text_that_a_writer_stores_as_bytes_is_text(tmp_path, kind):
    columns = {"uid": ["a", "b", "c"], "text": ["a dog runs", None, "größer"]}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({n: pa.array(of).cast(kind) for n, of in columns.items()}), path)
    assert table_keys(path) == columns["uid"]
    ((_, ((_, part),)),) = read_rules(["caption_characters"])
    for together in (True, False):
        values, status = said(part, path, range(3), together=together)
        assert values[:3] == [10, None, 6]
        assert status[:3] == ["ok", "failed: no caption", "ok"]


def test_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a b c"])] * 2, ["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"2 columns of .*a.parquet are called 'text'. Rename"):
        table_keys(tmp_path / "a.parquet")


def test_a_row_without_a_key_is_named(tmp_path):
    pq.write_table(pa.table({"uid": ["a", None, None]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"Rows of .*a.parquet have no uid: 2, the first is row 1"):
        table_keys(tmp_path / "a.parquet")
    pq.write_table(pa.table({"key": [7, 8]}), tmp_path / "a.parquet")
    assert table_keys(tmp_path / "a.parquet") == ["7", "8"]


def listed(raw, out, *keep):
    options = {"keep_list": True, "engine": Engine(kind="inline")}
    report = filter_shards(str(raw), out, keep=keep or ["caption_words"], **options)
    return pq.read_table(out / "keep.parquet").to_pylist(), report


def test_a_damaged_table_of_many_is_counted_and_left_out_and_folders_are_looked_into(tmp_path):
    pool = tmp_path / "pool"
    (pool / "b" / ".hidden").mkdir(parents=True)
    strange(pool / "a.parquet")
    strange(pool / "b" / "a.parquet")
    strange(pool / "b" / ".hidden" / "c.parquet")
    (pool / "cut.parquet").write_bytes((pool / "a.parquet").read_bytes()[:-50])
    (pool / "page.parquet").write_text("<html>not found</html>")
    rows, report = listed(pool, tmp_path / "list")
    assert {row["shard"] for row in rows} == {"a.tar", "b/a.tar"}
    assert report["faults"] == {
        "table cannot be read": {"count": 2, "examples": ["cut.parquet", "page.parquet"]}
    }
    assert (report["shards_in"], report["samples_in"]) == (2, 2 * len(TEXTS))


def test_a_column_that_is_damaged_fails_its_rows_and_no_others(tmp_path):
    pool = tmp_path / "pool"
    pool.mkdir()
    for name in "ab":
        strange(pool / f"{name}.parquet", status=None)
    group = pq.ParquetFile(pool / "a.parquet").metadata.row_group(1)
    places = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
    with (pool / "a.parquet").open("r+b") as file:
        file.seek(places["text"].dictionary_page_offset)
        file.write(b"\xff" * 40)
    for keep in (["caption_words"], ["caption_frequency", "image_side"]):
        rows, report = listed(pool, tmp_path / keep[0], *keep)
        assert {row["shard"] for row in rows} == {"a.tar", "b.tar"}
        assert report["failed"]["table is damaged"]["count"] == 7  # a row group


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"uid": [], "text": []}, "a.parquet has no rows"),
        ({"uid": ["x"] * 101, "text": ["a b c"] * 101}, "101 rows of .* have the key 'x'"),
        ({"uid": ["x", None], "text": ["a b c"] * 2}, "have no uid: 1, the first is row 1"),
    ],
)
def test_tables_whose_rows_cannot_be_named_are_refused_with_one_line(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message) as error:
        listed(tmp_path / "a.parquet", tmp_path / "list")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "list").exists()
