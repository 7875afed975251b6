"""The command line: help at once, one line for what is wrong, JSON where asked."""

import json
import subprocess
import sys

import pytest

from vlp import cli
from vlp.cli import main


def run(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "vlp", *argv], capture_output=True, text=True)


def test_the_version_and_an_empty_line_do_what_people_expect():
    assert run("--version").stdout.startswith("vlp 0.")
    assert "usage: vlp COMMAND" in run().stdout


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["trian"], "There is no command 'trian'. Did you mean train?"),
        (["train", "toyy", "--out", "x"], "There is no recipe 'toyy'. Did you mean toy"),
        (["train", "toy"], "Missing: --out"),
        (["train", "toy", "--out", "x"], "Write --data.shards FOLDER"),
        (["train", "toy", "--out", "x", "--data.shrds", "y"], "Did you mean --data.shards"),
        (["train", "toy", "--out", "x", "--steps", "1", "--samples", "1"], "Give exactly one"),
        (["train", "toy", "--out", "x", "--steps", "0"], "Write one above 0"),
        (["train", "toy", "--out", "x", "--data.batch-size", "1"], "at least 2"),
        (["search"], "Missing: INDEX"),
        (["inspect", "nowhere"], "There are no shards at nowhere"),
        (["embed", "nowhere", "s", "f"], "There are no shards at s"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(argv, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith("vlp: ")
    assert said.err.count("\n") == 1
    assert says in said.err
    assert not said.out


def test_help_of_a_command_names_its_options_and_recipes(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("toy", "emoji", "vit_b32_softmax", "vit_b16_sigmoid"))


def test_json_prints_the_result_and_nothing_else(shards, capsys):
    result = cli.run(["inspect", str(shards), "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(result, default=str))


def test_quiet_leaves_out_what_happens_on_the_way(shards, model, tmp_path, capsys):
    cli.run(["embed", str(model), str(shards), str(tmp_path / "features"), "--quiet"])
    assert capsys.readouterr().out.count("\n") == 1  # the result alone
