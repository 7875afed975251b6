"""Where figures go besides ``metrics.jsonl``: TensorBoard, W&B and whatever Accelerate knows."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from vlp.console import warn
from vlp.errors import UserError, first_line, nearest
from vlp.output import flatten, write_bytes

RUN_ID = ".run_id"
"""What W&B knows the run by; a folder that is started anew is another run."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError unless each name is a tracker of Accelerate whose package is installed."""
    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = nearest(name, LOGGER_TYPE_TO_CLASS)
            raise UserError(f"There is no tracker called {name!r}. {known}")
        if name not in installed:
            raise UserError(
                f"The tracker {name} is not installed. Run `pip install {name}`, or leave it out "
                f"of --trackers."
            )
        if names.count(name) > 1:
            raise UserError(f"The tracker {name} stands twice. Write it once.")


class Trackers:
    """The trackers of a run, on its main process. One that fails later on ends no run.

    A run that goes on writes no row twice: TensorBoard hides rows after ``step``, and W&B goes on
    in the same run and takes only rows of steps that it has not: the others are the same, but for
    those of a run that went back behind a spike. Other trackers begin anew under the same name.

    Raises:
        UserError: A tracker cannot start, as without a login.
    """

    def __init__(self, names: Sequence[str], run: Path, step: int, config: dict[str, Any]) -> None:
        values = {  # of types that all take
            name: value if isinstance(value, int | float) else str(value)
            for name, value in flatten(config).items()
        }
        self._trackers: list[Any] = [_build(name, run.resolve(), step) for name in names]
        for tracker in self._trackers:
            try:
                tracker.start()
                if tracker.name != "tensorboard":  # which would show it as a run of its own
                    tracker.store_init_configuration(values)
            except Exception as error:
                raise UserError(
                    f"The tracker {tracker.name} cannot start ({first_line(error)}). Mend that, "
                    f"or leave it out of --trackers."
                ) from None

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Write the figures of a step."""
        self._each(lambda tracker: tracker.log(dict(figures), step))

    def close(self) -> None:
        """Write out what is still held back."""
        self._each(lambda tracker: tracker.finish())

    def _each(self, act: Callable[[Any], None]) -> None:
        for tracker in list(self._trackers):
            try:
                act(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                warn(f"The tracker {tracker.name} failed and gets no more ({first_line(error)}).")


def _build(name: str, run: Path, step: int) -> Any:
    tracker: Any = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        return tracker("tensorboard", run, purge_step=step + 1)
    if name == "wandb":
        return tracker("vlp", id=_run_id(run), name=run.name, resume="allow", dir=str(run))
    return tracker(run.name, run) if tracker.requires_logging_directory else tracker(run.name)


def _run_id(run: Path) -> str:
    path = run / RUN_ID
    if not path.is_file():
        write_bytes(path, uuid.uuid4().hex.encode())
    return path.read_text()
