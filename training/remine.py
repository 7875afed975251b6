"""Batches mined again while a run goes on, of the training set as its encoder then sees it.

So hard negatives stay hard for the model that they are for (MCL, Zolfaghari et al. 2021 mine once
an epoch; ANCE, Xiong et al. 2021, arXiv:2007.00808, every so many steps). A plan that was mined is
a file of the run, ``mined/POSITION-HASH.safetensors``, which holds from its position on; inside of
an epoch it arranges what had not been read of it. A run that goes on reads the file.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from accelerate.utils import broadcast_object_list

from data_pipelines.dataset import Dataset, dataset_of, identity_of
from data_pipelines.encoded import EncodedSet
from data_pipelines.loader import Loader
from data_pipelines.mine import mine_pool
from data_pipelines.mining.mined import LEFT_OUT, Mined, read_mined, write_mined
from data_pipelines.mining.options import MineOptions
from data_pipelines.mining.row import MinedRow
from data_pipelines.mining.samples import Pool
from data_pipelines.plan import Plan
from data_pipelines.shards import ShardSet
from training.cadence import Cadence
from training.compute.fsdp import whole
from training.state import TrainState
from training.validation import encoding
from vlp.console import say, speaking, warn
from vlp.errors import UserError
from vlp.index import Matrix

if TYPE_CHECKING:
    from training.run import Run

FOLDER = "mined"


def is_mining_due(run: "Run") -> bool:
    """Return whether the batches that follow are to be mined first."""
    every = Cadence.parse(run.config.data.remine, "data.remine").duration.samples(run.length)
    if not every:
        return False
    position = run.state.samples_seen + run.state.passed_over
    return position // every > _row(run.parts.loader).first // every


def mine_again(run: "Run") -> None:
    """Mine the training set as the encoder sees it now, and read by the new plan from here on.

    Where a bound holds for too many pairs of these features, the plan of before goes on.
    """
    loader, state = run.parts.loader, run.state
    row, shards = _row(loader), loader.reader.sources[0]
    position = state.samples_seen + state.passed_over
    dataset, numbers = _to_mine(shards, row.mined)
    with whole(run.parts.encoder), speaking("quiet"), encoding(run.parts.encoder) as encode:
        encoded = encode.dataset(dataset)
    name = ""
    if run.accelerator.is_main_process:
        mined = _mined_of(encoded, numbers, shards, row)
        mined = replace(mined, read=_read_before(row, position))
        name = write_mined(mined, run.out / FOLDER, f"{position:012d}").name
        say(
            f"Mined again at step {state.step}: {len(mined.apart)} pairs are kept apart from now "
            f"on. See {FOLDER}/{name}."
        )
    state.mined = _of_the_first(name)
    take_up_plan(loader, state, run.out)


def take_up_plan(loader: Loader, state: TrainState, out: Path) -> None:
    """Let the loader read by the plan that the run had mined last, if it has mined any.

    The epoch is arranged here, so that workers that are forked share it.

    Raises:
        UserError: Its file is gone or damaged.
    """
    if state.mined:
        mined = read_mined(out / FOLDER / state.mined)
        row = replace(_row(loader), mined=mined, first=int(state.mined.partition("-")[0]))
        plan = loader.reader.plan
        loader.reader = replace(
            loader.reader, plan=Plan([row], plan.batch_size, plan.weights, plan.lanes)
        )
    num_met(loader, state)


def num_met(loader: Loader, state: TrainState) -> int:
    """Return how many samples of this epoch meet one that they may not."""
    row = loader.reader.plan.rows[0]
    if not isinstance(row, MinedRow):
        return 0
    return row.arrangement((state.samples_seen + state.passed_over) // len(row)).met


def _row(loader: Loader) -> MinedRow:
    row = loader.reader.plan.rows[0]
    assert isinstance(row, MinedRow), "the config asks for mined batches"
    return row


def _to_mine(shards: ShardSet, mined: Mined) -> tuple[Dataset, np.ndarray]:
    """Return the samples to mine, and their numbers in the shards."""
    every, numbers = (
        dataset_of(shards, "training shards"),
        np.flatnonzero(mined.cluster != LEFT_OUT),
    )
    keys: Sequence[str] = [every.keys[number] for number in numbers.tolist()]
    some = replace(
        every,
        keys=keys,
        read=lambda row: every.read(int(numbers[row])),
        identity=identity_of(keys, []),
        place=lambda row: every.place(int(numbers[row])),
    )
    return some, numbers


def _mined_of(encoded: EncodedSet, numbers: np.ndarray, shards: ShardSet, row: MinedRow) -> Mined:
    """Return the plan of features in memory, with the options and groups of the one before."""
    before = row.mined
    told = {name: value for name, value in before.told.items() if name != "shards"}
    options = MineOptions(**{**told, "apart": tuple(told["apart"])})
    place = np.full(len(before), -1, np.int64)
    place[numbers[encoded.rows]] = np.arange(len(encoded.rows))
    held = {"image": encoded.image, "text": encoded.text}
    features: dict[str, Matrix] = {kind: held[kind].numpy() for kind in sorted(options.needs)}
    is_read = np.split((before.cluster != LEFT_OUT).astype(np.int64), np.cumsum(row.counts)[:-1])
    try:
        with speaking("quiet"):
            return mine_pool(Pool(features, place, before.group), shards, options, is_read)
    except UserError as error:
        warn(f"The batches are not mined again: {error}")
        return before


def _read_before(row: MinedRow, position: int) -> np.ndarray | None:
    """Return which entries of the epoch have been read before a position, as bits."""
    epoch, rank = divmod(position, len(row))
    if not rank:
        return None
    start, order, _ = row.arrangement(epoch)
    is_read = np.ones(len(row), bool)
    is_read[order[position - start :]] = False
    return np.packbits(is_read)


def _of_the_first(name: str) -> str:
    """Return what the first process says, once all others have come here, too."""
    told = [name]
    broadcast_object_list(told)
    return told[0]
