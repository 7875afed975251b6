"""Parts are named by text."""

import pytest

from vlp.errors import UserError
from vlp.spec import build, names


def test_arguments_reach_the_part():
    assert build("training.losses", "softmax(label_smoothing=0.1)").label_smoothing == 0.1


def test_a_dotted_name_finds_a_part_outside_this_repository(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_loss.py").write_text("class MyLoss:\n    start_scale = 3.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert build("training.losses", "mine.my_loss").start_scale == 3.0


def test_the_folder_is_the_registry():
    assert {"softmax", "sigmoid"} <= set(names("training.losses"))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("softmx", "no loss called 'softmx'. Did you mean softmax"),
        ("softmax(smoothing=1)", r"Write softmax\(.*label_smoothing=0.0\)"),
        ("softmax(0.1)", "give arguments by name"),
        ("softmax(label_smoothing=open('x'))", "Cannot read"),
        ("softmax(label_smoothing='a')", "label_smoothing cannot be 'a', a str. Write softmax"),
        ("nowhere.to.be_found", "no loss called"),
        ("__import__('os').system(x=1)", "a name is words and dots"),
    ],
)
def test_a_wrong_text_says_what_to_write(spec, says):
    with pytest.raises(UserError, match=says):
        build("training.losses", spec)
