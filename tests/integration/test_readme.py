"""README's commands run as they are written, and those of docs/ can be."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from tests_support import COLOURS, picture

from data_pipelines import speed
from vlp import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Stand where README's commands are typed: a folder of photos, and one photo."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(160):
        colour = list(COLOURS)[i % 4]
        (folder / f"{i}.png").write_bytes(picture(colour, (80, 64), noise=i))
        (folder / f"{i}.txt").write_text(f"a {colour} field, number {i}")
    (tmp_path / "photo.jpg").write_bytes(picture("red", (80, 64)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_of_the_readme_run_as_written(photos, capsys, monkeypatch):
    monkeypatch.setattr(speed, "SECONDS", 0.5)
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    assert len(blocks) > 1
    for line in "".join(blocks).splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "vlp"
        cli.run(words[1:])
    assert len(list((photos / "clean").glob("*.tar"))) == 1
    assert (photos / "found.png").is_file()
    assert (photos / "mixed" / "checkpoints").is_dir()
    assert "probability" in capsys.readouterr().out


def test_the_make_targets_of_the_readme_are_there():
    for target in re.findall(r"(?m)^make (\S+)$", README):
        dry = ["make", "-n", target]
        assert (
            subprocess.run(dry, cwd=Path(__file__).parents[2], capture_output=True).returncode == 0
        )


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_every_command_in_the_docs_has_options_that_there_are(path):
    text = re.sub(r"\\\n\s*", "", path.read_text())
    launched = r"(?m)^(?:\$ |srun )?(?:(?:torchrun|accelerate launch) .*-m )?vlp (.*)"
    commands = re.findall(launched, text)
    assert commands or path.name != "README.md"
    for command in commands:
        cli.parse(shlex.split(command, comments=True))


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_files_that_the_docs_name_are_there(path):
    text = path.read_text()
    named = re.findall(r"(?:tests|vlp|data_pipelines|eval|training)/[\w/]+\.py", text)
    for file in named:
        assert (ROOT / file).is_file(), file
    for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", text):
        assert (path.parent / target).is_file(), target
