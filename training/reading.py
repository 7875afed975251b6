"""From the data's options to a plan of the samples and what reads them."""

from itertools import chain, zip_longest

from data_pipelines.captions import CaptionChoice
from data_pipelines.hard_captions import HardCaptions, Ramp, build_hard_captions
from data_pipelines.keep_list import read_copies
from data_pipelines.plan import Plan, Resampled, Row, hash63
from data_pipelines.reader import Reader
from data_pipelines.shards import ShardSet, join, name_shards, open_shards
from training.config import TrainConfig
from training.duration import RunLength
from training.options import DataConfig
from training.teachers import Teacher
from vlp.errors import UserError
from vlp.tokenizer import Tokenizer


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
        UserError: A part cannot be built, needs what is not installed, or begins after the end.
    """
    if not config.negatives:
        return None
    start, rise = (duration.samples(length) for duration in config.negatives_durations())
    if start >= length.samples:
        raise UserError(
            f"Hard captions begin after {start:,.0f} samples, and the run has "
            f"{length.samples:,.0f}. Write a shorter --negatives-start."
        )
    ramp = Ramp(start, rise, config.negatives_share)
    names_group = config.data.group == "caption"
    return build_hard_captions(config.negatives, ramp, names_group=names_group)


def open_sources(data: DataConfig, seed: int) -> tuple[list[ShardSet], Plan]:
    """Return the sources of training samples, one for each weight or all in one, and their plan.

    Raises:
        UserError: There are no samples, or fewer than a batch.
    """
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
    rows = [
        Row(shards.counts, hash63(f"{seed} {number}"), data.lanes, own)
        for number, (shards, own) in enumerate(zip_longest(opened, copies))
    ]
    return opened, Plan(rows, data.batch_size, data.weights or (1.0,), data.lanes)
