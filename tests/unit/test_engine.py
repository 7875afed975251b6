"""The course of tasks over a crew of which not all come back."""

from collections import deque

from data_pipelines.engine import _Run
from data_pipelines.workers import Crew, Done, Lost


class Shrinking(Crew):
    """Two workers in this process, of which the second is lost at its first task for good."""

    def __init__(self):
        self.said, self.lost = deque(), False

    def start(self, worker):
        if not self.lost:
            self.said.append((worker, Done()))

    def give(self, worker, task):
        self.lost |= worker == 1
        self.said.append((worker, Lost("was lost") if worker == 1 else Done(task**2)))

    def hear(self):
        assert self.said, "nobody is at work, and not all is done"
        yield self.said.popleft()

    def close(self):
        pass


def test_a_task_of_a_lost_worker_goes_to_one_that_is_idle(capsys):
    for count in range(1, 5):
        ended = []
        run = _Run(Shrinking(), range(count), 2, lambda ended=ended: ended.append(1))
        assert list(run.results()) == [task**2 for task in range(count)]
        assert len(ended) == count
    assert "was lost; another begins anew" in capsys.readouterr().err
