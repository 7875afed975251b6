"""Output folders are whole or not there, and nobody's work is replaced by mistake."""

import json
import os
from pathlib import Path

import pytest

from vlp.errors import UserError
from vlp.output import (
    differences,
    lock_folder,
    output_folder,
    read_record,
    whole_file,
    write_json,
)


def write(path, command="filter", text="new", **config):
    options = {k: config.pop(k) for k in ("overwrite", "inputs") if k in config}
    with output_folder(path, command, config, **options) as part:
        (part / "data").write_text(text)


def test_a_folder_appears_whole_and_the_same_command_replaces_it(tmp_path):
    write(tmp_path / "out", text="one", k=1)
    write(tmp_path / "out", text="two", k=1)
    assert (tmp_path / "out" / "data").read_text() == "two"
    assert read_record(tmp_path / "out") == {"command": "filter", "config": {"k": 1}}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_command_that_fails_leaves_what_was_there(tmp_path):
    write(tmp_path / "out", text="one")
    with pytest.raises(TypeError):
        write(tmp_path / "out", text=None)
    assert (tmp_path / "out" / "data").read_text() == "one"


def test_another_config_is_refused_with_the_differences_until_overwrite(tmp_path):
    write(tmp_path / "out", keep=["a"], size=3)
    with pytest.raises(UserError, match=r"keep was \['a'\], is \['b'\]; size was 3, is 4"):
        write(tmp_path / "out", keep=["b"], size=4)
    write(tmp_path / "out", keep=["b"], size=4, overwrite=True)


def test_another_command_is_refused_until_overwrite(tmp_path):
    write(tmp_path / "out", "pack")
    with pytest.raises(UserError, match="was written by `vlp pack`"):
        write(tmp_path / "out", "filter")
    write(tmp_path / "out", "filter", overwrite=True)


def test_a_persons_files_are_never_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"no vlp command wrote, such as thesis.txt"):
            write(tmp_path / "mine", overwrite=overwrite)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        write(tmp_path / "file")


def test_an_output_may_not_be_or_hold_its_input(tmp_path):
    write(tmp_path / "in")
    for out in (tmp_path / "in", tmp_path):
        with pytest.raises(UserError, match="is the input"):
            write(out, overwrite=True, inputs=[tmp_path / "in"])


def test_differences_name_nested_fields():
    assert differences({"data": {"n": 1}, "x": 0}, {"data": {"n": 2}}) == [
        "data.n was 1, is 2",
        "x was 0, is None",
    ]


def test_a_file_is_flushed_before_it_takes_its_name_and_the_old_one_stays_till_then(
    tmp_path, monkeypatch
):
    path, flushed = tmp_path / "a" / "file", []
    monkeypatch.setattr(os, "fsync", lambda _: flushed.append(path.exists() and path.read_text()))
    for text in ("one", "two"):
        with whole_file(path) as file:
            file.write(text.encode())
    assert flushed == [False, "one"]
    with pytest.raises(TypeError), whole_file(path) as file:
        file.write("no bytes")
    assert path.read_text() == "two"


def test_a_file_that_is_not_finished_leaves_nothing_behind(tmp_path):
    def fail():
        with whole_file(tmp_path / "labels.csv") as file:
            file.write(b"half")
            raise UserError("No picture could be read.")

    with pytest.raises(UserError, match="No picture"):
        fail()
    assert not any(tmp_path.iterdir())


def test_half_of_a_pair_of_surrogates_is_written_as_json_spells_it(tmp_path):
    said = {"name": "caf\udce9", "caption": "日本 \ud800"}
    write_json(tmp_path / "said.json", said)
    assert json.loads((tmp_path / "said.json").read_text()) == said


def test_a_folder_that_nobody_may_write_to_is_named():
    with pytest.raises(UserError, match="Cannot write to /sys"):
        lock_folder(Path("/sys"))
