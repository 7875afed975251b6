"""The folder of a run: whether it may be written, and what was wrong with the data."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

from data_pipelines.loader import Loader, worker_error
from data_pipelines.sources import find_shards
from training.compute.shared_errors import is_lost
from training.config import TrainConfig
from training.run_folder.checkpoints import remove_parts
from vlp.checkpoint import list_checkpoints, paths_of
from vlp.errors import UserError
from vlp.output import (
    check_output,
    lock_folder,
    read_record,
    remove_output,
    write_json,
    write_record,
)

FREE_TO_CHANGE = (
    "data.shards",
    "data.keep",
    "data.mined",
    "data.validation",
    "data.workers",
    "data.max_bad",
    "log_every",
    "save_every",
    "keep.last",
    "keep.every",
    "keep.best",
    "validate_every",
    "tasks",
    "trackers",
    "image_piece",
    "text_piece",
    "guard.patience",
    "guard.spike",
    "guard.window",
    "guard.on_spike",
    "guard.rewinds",
    "speed.cut_captions",
    "speed.recompute",
    "speed.compile",
    "speed.profile",
    "sharding",
)
"""Fields that a run may go on with other values of: they change nothing but rounding, or what is
done about steps that would harm it. Of moved shards the checkpoint knows the names and counts."""
FAULTS = "faults.json"


def check_out(out: Path, config: TrainConfig, *, overwrite: bool) -> bool:
    """Return whether the run in ``out`` starts anew.

    Raises:
        UserError: The folder is another run's or command's, or what this run reads.
    """
    # A run that ended before its first checkpoint has nothing to lose.
    is_free = overwrite or (is_run(out) and not list_checkpoints(out))
    inputs, told = _inputs(config), asdict(config)
    check_output(out, "train", told, inputs=inputs, overwrite=is_free, free=FREE_TO_CHANGE)
    return is_free


def is_run(folder: Path) -> bool:
    """Return whether `vlp train` wrote the folder."""
    record = read_record(folder)
    return record is not None and record["command"] == "train"


def claim(out: Path, config: TrainConfig, *, overwrite: bool) -> IO[str]:
    """Make the folder the run's, with its config; return the lock, which holds until it is closed.

    Raises:
        UserError: Another process writes the folder.
    """
    if is_run(out):
        lock_folder(out).close()
    if overwrite:
        remove_output(out)
    out.mkdir(parents=True, exist_ok=True)
    write_record(out, "train", asdict(config))
    lock = lock_folder(out)
    remove_parts(out)
    for part in out.glob(".*.part"):  # a file that was being written at a kill
        part.unlink()
    return lock


def write_faults(loader: Loader, out: Path) -> None:
    """Write down for people what was wrong with the data."""
    write_json(out / FAULTS, loader.faults().as_dict())


@contextmanager
def faults_written(loader: Loader, out: Path) -> Iterator[None]:
    """Write down what was wrong with the data although a run stops for it.

    The process that fails knows what all had found at the last row of figures, and its own since.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, RuntimeError) as error:
        # Of a run on several machines another may not see the folder; one that lost another process
        # knows less than that did.
        if out.is_dir() and not is_lost(error):
            with suppress(OSError):  # where the disk is full, the error says so
                write_faults(loader, out)
        if isinstance(error, RuntimeError) and (told := worker_error(error)):
            raise told from None
        raise


def _inputs(config: TrainConfig) -> list[Path]:
    """Return every file and folder that the run reads: its output may be none of them."""
    model = config.model
    models = paths_of(model.name, model.weights, model.image_weights, model.text_weights)
    data = config.data
    shards = [source for source in (*data.shards, data.validation) if source]
    return [
        *find_shards(shards),
        *paths_of(*shards, *data.keep, data.mined, config.teacher),
        *models,
    ]
