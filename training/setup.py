"""What a run is made of, built from its config: data, encoder, loss."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import Accelerator

from data_pipelines.fetch_ahead import warn_of_small_cache
from data_pipelines.hard_captions import HardCaptions
from data_pipelines.loader import Loader
from data_pipelines.plan import Plan
from data_pipelines.shards import ShardSet
from training.compute.accumulate import Pieces, refuse_batch_norm
from training.compute.flops import FlopCounter
from training.compute.fsdp import refuse_sharding, shard
from training.compute.towers import set_up_towers
from training.config import TrainConfig
from training.duration import RunLength
from training.memory import Memory
from training.objective import Objective, build_objective, warn_of_scales
from training.optimization.average import Average
from training.optimization.groups import frozen_names, parameter_groups
from training.optimization.guard import Guard
from training.optimization.optimizers import build_optimizer
from training.optimization.schedule import Schedule, plan_schedule
from training.optimization.stages import trained_norms
from training.options import ModelConfig
from training.reading import build_reader, open_hard_captions, open_sources
from training.run_folder.trackers import check_trackers
from training.teachers import Teacher, check_features, open_teacher
from training.validation import Validation, open_validation
from vlp.checkpoint import find_model
from vlp.encoder import DualEncoder, create_encoder
from vlp.errors import UserError
from vlp.picture_size import check_size


class Basis(NamedTuple):
    """What a run stands on before it has weights."""

    objective: Objective
    sources: list[ShardSet]
    plan: Plan | None
    """Of the samples; None where a dry run has no shards."""
    length: RunLength
    schedule: Schedule
    hard_captions: HardCaptions | None
    validation: Validation | None

    @property
    def num_hard(self) -> int:
        """Hard captions of each pair."""
        return self.hard_captions.count if self.hard_captions else 0


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a run; those that change while it lasts are in its state, too."""

    validation: Validation | None
    loader: Loader
    encoder: DualEncoder
    optimizer: torch.optim.Optimizer
    clip_norm: float
    """Largest norm of the whole gradient; 0 leaves it as it is."""
    objective: Objective
    pieces: Pieces
    memory: Memory | None
    schedule: Schedule
    """Learning rate and stages."""
    average: Average | None
    guard: Guard
    flops: FlopCounter
    teacher: Teacher | None

    @property
    def averaged(self) -> DualEncoder | None:
        """The moving average of the encoder, where the run keeps one."""
        return self.average.encoder if self.average else None


def build_parts(config: TrainConfig, accelerator: Accelerator) -> Parts:
    """Build everything that the loop turns over; the same on every process.

    Raises:
        UserError: The data, the model or the loss is not what the config says.
    """
    if not config.data.shards:
        raise UserError("There is nothing to train on. Write --data.shards FOLDER.")
    is_main = accelerator.is_main_process
    basis = open_basis(config, accelerator.mixed_precision, is_main=is_main)
    objective, sources, plan, _, schedule, hard_captions, validation = basis
    assert plan is not None
    # Before the seed: a teacher leaves the student's first weights as they are without one.
    teacher = None
    if config.teacher is not None:
        teacher = open_teacher(config.teacher, accelerator.device)
        if is_main:
            check_teacher(teacher, config, basis)
    torch.manual_seed(config.seed)
    encoder = build_encoder(config.model, objective).to(accelerator.device)
    flops = FlopCounter(encoder)  # first: what is recomputed is no operation of the model
    set_up_encoder(config, encoder, basis, accelerator.num_processes)
    memory = _memory(encoder, config)
    average = Average(encoder, config.ema) if config.ema else None
    if config.sharding == "fsdp":
        followers = (memory and memory.key_encoder, average and average.encoder)
        for held in filter(None, (encoder, *followers)):
            shard(held, accelerator.mixed_precision)
    loader = Loader(
        build_reader(
            config,
            sources,
            plan,
            encoder.tokenizer,
            encoder.image_size,
            teacher,
            hard_captions,
        ),
        process=accelerator.process_index,
        num_processes=accelerator.num_processes,
        workers=config.data.workers,
        max_bad=config.data.max_bad,
    )
    groups = parameter_groups(encoder, config.optimizer, schedule.stages)
    return Parts(
        validation=validation,
        loader=loader,
        encoder=encoder,
        optimizer=build_optimizer(config.optimizer, groups),
        clip_norm=config.optimizer.clip_norm,
        objective=objective,
        pieces=Pieces(config.image_piece, config.text_piece),
        flops=flops,
        memory=memory,
        schedule=schedule,
        average=average,
        guard=Guard(config.guard),
        teacher=teacher,
    )


def open_basis(config: TrainConfig, precision: str, *, is_main: bool) -> Basis:
    """Return what a run stands on, checked; a dry run has the same. Only the main process warns.

    Raises:
        UserError: An option or the data is not what a run can use.
    """
    check_trackers(config.trackers)
    objective = build_objective(config.loss)
    if config.sharding == "fsdp":
        refuse_sharding(config, precision)
    sources, plan = open_sources(config) if config.data.shards else ([], None)
    length = config.run_length(plan.num_samples if plan else None)
    schedule = plan_schedule(config, length)
    hard_captions = open_hard_captions(config, length)
    if is_main:
        warn_of_scales(objective)
        if plan is not None:
            warn_of_small_cache(sources, plan)
    held_out = config.data.validation
    validation = open_validation(held_out, config.tasks) if held_out else None
    return Basis(objective, sources, plan, length, schedule, hard_captions, validation)


def check_teacher(teacher: Teacher, config: TrainConfig, basis: Basis) -> None:
    """Raise UserError where a teacher on disk lacks too many of a run's samples."""
    if teacher.features is not None and basis.plan is not None:
        check_features(teacher.features, basis.sources, basis.plan, config.data.max_bad)


def set_up_encoder(
    config: TrainConfig, encoder: DualEncoder, basis: Basis, num_processes: int
) -> None:
    """Let an encoder, also one of shapes alone, compute as the options say.

    Raises:
        UserError: The losses, a stage or recomputation ask for what this encoder cannot do.
    """
    objective, schedule = basis.objective, basis.schedule
    objective.check(_fields(config), encoder.dim)
    pieces = Pieces(config.image_piece, config.text_piece)
    pairs = config.data.batch_size // num_processes
    images = pairs * config.data.image_views
    texts = pairs * (config.data.text_views + basis.num_hard)
    for stage in schedule.stages:
        if stage.image_size:
            check_size(encoder.visual, stage.image_size)
        norms = trained_norms(encoder, frozen_names(encoder, config.optimizer, stage))
        refuse_batch_norm(norms, pieces, images, texts)
    set_up_towers(encoder, config.speed)


def build_encoder(model: ModelConfig, objective: Objective) -> DualEncoder:
    """Return the encoder that a run starts from, with the scale and bias that its losses want.

    An encoder that comes whole and was trained with the same kind of losses keeps its own.
    """
    source = find_model(model.name, model.weights)
    encoder = create_encoder(
        source.config,
        weights=source.weights,
        folder=source.folder,
        image_weights=model.image_weights,
        text_weights=model.text_weights,
        image_size=model.image_size,
        context_length=model.context_length,
        patch_dropout=model.patch_dropout,
    )
    is_same_kind = encoder.is_sigmoid == (objective.start_bias is not None)
    if source.weights is None or not is_same_kind:
        encoder.set_logits(objective.start_scale, objective.start_bias)
    return encoder


def _memory(encoder: DualEncoder, config: TrainConfig) -> Memory | None:
    if not config.memory:
        return None
    return Memory(
        encoder,
        config.memory,
        top=config.memory_top,
        ceiling=config.memory_ceiling,
        momentum=config.memory_momentum,
    )


def _fields(config: TrainConfig) -> list[str]:
    """Return the optional fields that batches of a run have."""
    asked = {
        "views": config.data.image_views > 1,
        "text_views": config.data.text_views > 1,
        "past": config.memory > 0,
        "hard_text": bool(config.negatives),
        "teacher": config.teacher is not None,
    }
    return [field for field, is_asked in asked.items() if is_asked]
