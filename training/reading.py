"""From the data's options to a plan of the samples and what reads them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from data_pipelines.captions import CaptionChoice
from data_pipelines.hard_captions import HardCaptions, build_hard_captions
from data_pipelines.keep_list import read_copies
from data_pipelines.mining.mined import read_mined
from data_pipelines.mining.row import MinedRow
from data_pipelines.plan import Plan, Resampled, Row, hash63
from data_pipelines.reader import Reader
from data_pipelines.shards import ShardSet, join, name_shards, open_shards
from training.config import TrainConfig
from training.curriculum import Curriculum
from training.duration import RunLength
from training.teachers import Teacher
from vlp.errors import UserError
from vlp.tokenizer import Tokenizer

Copies = Sequence[Int64[np.ndarray, "_"]]
"""For each shard, how often each of its samples stands in an epoch."""


def build_reader(
    config: TrainConfig,
    sources: list[ShardSet],
    plan: Plan,
    tokenizer: Tokenizer,
    image_size: tuple[int, int],
    teacher: Teacher | None = None,
    hard_captions: HardCaptions | None = None,
) -> Reader:
    """Return what makes batches of the samples of a plan, and what its teacher sees of them."""
    return Reader(
        sources=sources,
        plan=plan,
        tokenizer=tokenizer,
        image_size=image_size,
        augmentation=config.data.augmentation,
        captions=CaptionChoice.parse(config.data.captions),
        seed=config.seed,
        group=config.data.group,
        label_key=config.data.label_key,
        image_views=config.data.image_views,
        text_views=config.data.text_views,
        is_scaled=config.data.scaled_decode,
        teacher=teacher and teacher.input,
        features=teacher and teacher.features,
        hard_captions=hard_captions,
    )


def open_hard_captions(config: TrainConfig, length: RunLength) -> HardCaptions | None:
    """Return what makes the hard captions of a run of this length; None where it has none.

    Raises:
        UserError: A part cannot be built, or needs what is not installed.
    """
    if not config.negatives:
        return None
    share = Curriculum.parse(config.negatives_share, "negatives-share").of(length)
    names_group = config.data.group == "caption"
    return build_hard_captions(config.negatives, share, names_group=names_group)


def open_sources(config: TrainConfig) -> tuple[list[ShardSet], Plan]:
    """Return the sources of training samples, one for each weight or all in one, and their plan.

    Raises:
        UserError: There are no samples, fewer than a batch, or others than were mined.
    """
    data, seed = config.data, config.seed
    if data.resample:
        named = [name_shards(source) for source in data.shards]
        opened = named if data.weights else [join(named)]
        rows = [
            Resampled(len(shards.shards), hash63(f"{seed} {number}"), data.lanes)
            for number, shards in enumerate(opened)
        ]
        return opened, Plan(rows, data.batch_size, data.weights or (1.0,), data.lanes)
    opened = [open_shards(source) for source in data.shards]
    copies = [read_copies(path, own) for path, own in zip(data.keep, opened, strict=False)]
    if not data.weights:
        opened, copies = [join(opened)], [list(chain.from_iterable(copies))] if copies else []
    if data.mined is not None:
        return opened, _mined_plan(config, opened[0], copies[0] if copies else None)
    rows = [
        Row(shards.counts, hash63(f"{seed} {number}"), data.lanes, own)
        for number, (shards, own) in enumerate(zip_longest(opened, copies))
    ]
    return opened, Plan(rows, data.batch_size, data.weights or (1.0,), data.lanes)


def _mined_plan(config: TrainConfig, shards: ShardSet, copies: Copies | None) -> Plan:
    """Return the plan of mined batches of the samples of one source."""
    data = config.data
    assert data.mined is not None
    # A plan that another run mined within an epoch holds for all of an epoch here.
    mined = replace(read_mined(Path(data.mined)), read=None)
    mined.check(shards, copies)
    apart = _grouped(mined.told["group"], mined.told["label_key"])
    matches = _grouped(data.group, data.label_key)
    if data.group != "none" and apart != matches:
        raise UserError(
            f"{data.mined} was mined with --group {apart}, and the run's matches are by "
            f"{data.group}. Run `vlp mine --group {matches}`."
        )
    num_samples = sum(int(own.sum()) for own in copies or [shards.counts])
    share = Curriculum.parse(data.hard, "data.hard").of(config.run_length(num_samples))
    seed = hash63(f"{config.seed} 0")
    row = MinedRow(shards.counts, seed, data.batch_size, mined, share, copies)
    return Plan([row], data.batch_size, lanes=data.lanes)


def _grouped(group: str, label_key: str) -> str:
    """Return what samples are grouped by, as the options of `vlp mine --group` say it."""
    return f"{group} --label-key {label_key}" if group == "label" else group
