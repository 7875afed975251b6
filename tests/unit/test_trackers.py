import accelerate.tracking as tracking
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.run_folder.trackers import Trackers, check_trackers
from vlp.errors import UserError


def test_a_tracker_that_is_not_installed_says_how_to_install_it():
    installed = {str(name) for name in tracking.get_available_trackers()}
    missing = next(name for name in tracking.LOGGER_TYPE_TO_CLASS if name not in installed)
    with pytest.raises(
        UserError, match=rf"{missing} is not installed. Run `pip install {missing}`"
    ):
        check_trackers(["tensorboard", missing])


def test_tensorboard_of_a_run_that_goes_on_has_no_row_twice(tmp_path):
    for first, last in ((0, 8), (5, 10)):  # killed after step 8, the newest checkpoint at 5
        trackers = Trackers(["tensorboard"], tmp_path, first, {})
        for step in range(first + 1, last + 1):
            trackers.log({"loss": float(step)}, step)
        trackers.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("loss")] == [(n, n) for n in range(1, 11)]


class Failing(tracking.GeneralTracker):
    name, requires_logging_directory = "failing", False

    def __init__(self, run_name, **options):
        super().__init__()
        self.config, self.rows = {}, []

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        if values.get("seed") == 13:
            raise RuntimeError("no login\nmore")
        self.config |= values

    def log(self, values, step=None):
        self.rows.append(step)
        if step == 2:
            raise ConnectionError("the network is gone\nmore")


@pytest.fixture
def failing(monkeypatch):
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "failing", Failing)


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(failing, tmp_path, capsys):
    trackers = Trackers(["failing", "tensorboard"], tmp_path, 0, {"data": {"shards": ("a", "b")}})
    failed, board = trackers._trackers
    assert failed.config == {"data.shards": "('a', 'b')"}
    for step in (1, 2, 3):
        trackers.log({"loss": 1.0}, step)
    trackers.close()
    assert failed.rows == [1, 2]
    assert trackers._trackers == [board]
    assert capsys.readouterr().err.count("The tracker failing failed") == 1


def test_a_tracker_that_cannot_start_is_named_in_one_line(failing, tmp_path):
    with pytest.raises(UserError, match=r"failing cannot start \(no login\)\. Mend that"):
        Trackers(["failing"], tmp_path, 0, {"seed": 13})
