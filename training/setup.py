"""What a run is made of, built from its config: data, encoder, loss."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, zip_longest

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from data_pipelines.captions import CaptionChoice
from data_pipelines.fetch_ahead import warn_of_small_cache
from data_pipelines.keep_list import read_copies
from data_pipelines.loader import Loader
from data_pipelines.plan import Plan, Resampled, Row, check_processes, hash63
from data_pipelines.reader import Reader
from data_pipelines.shards import ShardSet, join, name_shards, open_shards
from training.accumulate import Pieces, refuse_batch_norm
from training.config import TrainConfig
from training.groups import frozen_names, parameter_groups
from training.memory import Memory
from training.objective import Objective, build_objective, warn_of_scales
from training.optimizers import build_optimizer
from training.options import DataConfig, ModelConfig
from training.schedule import Course, plan_course
from training.stages import trained_norms
from training.teachers import Teacher, check_features, open_teacher
from vlp.checkpoint import find_model
from vlp.encoder import DualEncoder, create_encoder
from vlp.errors import UserError
from vlp.picture_size import check_size


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a run; only the encoder, the optimizer and the memory change while it lasts."""

    validation: ShardSet | None
    loader: Loader
    encoder: DualEncoder
    optimizer: torch.optim.Optimizer
    clip_norm: float
    """Largest norm of the whole gradient; 0 leaves it as it is."""
    objective: Objective
    pieces: Pieces
    memory: Memory | None
    course: Course
    """Learning rate and stages."""
    teacher: Teacher | None


def start_processes(config: TrainConfig) -> Accelerator:
    """Return Accelerate's view of the processes and the precision of the run."""
    AcceleratorState._reset_state()  # of a run before in this process, as in the tour
    has_gpu = torch.cuda.is_available()
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if _computes_bf16(has_gpu=has_gpu) else "fp32"
    if precision == "fp16" and not has_gpu:
        raise UserError("fp16 needs a GPU. Write --precision fp32, or bf16.")
    # The other processes wait while the main one validates.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(precision, precision),
        cpu=not has_gpu,
        kwargs_handlers=[patience],
    )
    check_processes(config.data.batch_size, accelerator.num_processes)
    return accelerator


@contextmanager
def cores_for_workers() -> Iterator[None]:
    """Leave two cores to the workers, however many they are, unless OMP_NUM_THREADS is set.

    Threads of one kernel wait for each other: two of them on two cores, one of which is busy
    reading, took ten times as long as one (measured). Their number changes rounding, so a run
    that goes on with other workers keeps it.
    """
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else before
        own = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, own - 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _computes_bf16(*, has_gpu: bool) -> bool:
    """Return whether the hardware multiplies bf16 faster than fp32, and does not imitate it."""
    if has_gpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def build_parts(config: TrainConfig, accelerator: Accelerator) -> Parts:
    """Build everything that the loop turns over; the same on every process.

    Raises:
        UserError: The data, the model or the loss is not what the config says.
    """
    if not config.data.shards:
        raise UserError("There is nothing to train on. Write --data.shards FOLDER.")
    objective = build_objective(config.loss)
    if accelerator.is_main_process:
        warn_of_scales(objective)
    sources, plan = open_sources(config.data, config.seed)
    course = plan_course(config, config.run_length(plan.num_samples))
    if accelerator.is_main_process:
        warn_of_small_cache(sources, plan)
    validation = open_validation(config.data.validation) if config.data.validation else None
    # Before the seed: a teacher leaves the student's first weights as they are without one.
    teacher = _teacher(config, accelerator, sources, plan)
    torch.manual_seed(config.seed)
    encoder = build_encoder(config.model, objective).to(accelerator.device)
    objective.check(_fields(config), encoder.dim)
    pieces = Pieces(config.image_piece, config.text_piece)
    pairs = config.data.batch_size // accelerator.num_processes
    _check_stages(config, encoder, course, pieces, pairs)
    loader = _loader(config, accelerator, sources, plan, encoder, teacher)
    groups = parameter_groups(encoder, config.optimizer, course.stages)
    return Parts(
        validation=validation,
        loader=loader,
        encoder=encoder,
        optimizer=build_optimizer(config.optimizer, groups),
        clip_norm=config.optimizer.clip_norm,
        objective=objective,
        pieces=pieces,
        memory=_memory(encoder, config),
        course=course,
        teacher=teacher,
    )


def _check_stages(
    config: TrainConfig, encoder: DualEncoder, course: Course, pieces: Pieces, pairs: int
) -> None:
    """Raise UserError where a stage asks of a tower what it cannot do with a process's pairs."""
    images, texts = pairs * config.data.image_views, pairs * config.data.text_views
    for stage in course.stages:
        if stage.image_size:
            check_size(encoder.visual, stage.image_size)
        norms = trained_norms(encoder, frozen_names(encoder, config.optimizer, stage))
        refuse_batch_norm(norms, pieces, images, texts)


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


def open_validation(source: str) -> ShardSet:
    """Return held-out shards, which retrieval needs captions of.

    Raises:
        UserError: None of the samples has a caption.
    """
    shards = open_shards(source)
    if not any({"txt", "json"} & set(entry.members) for entry in shards.entries):
        raise UserError(f"The validation shards {source} have no captions. Give shards with .txt.")
    return shards


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


def _loader(
    config: TrainConfig,
    accelerator: Accelerator,
    sources: list[ShardSet],
    plan: Plan,
    encoder: DualEncoder,
    teacher: Teacher | None,
) -> Loader:
    """Return what reads this process's part of each batch."""
    reader = Reader(
        sources=sources,
        plan=plan,
        tokenizer=encoder.tokenizer,
        image_size=encoder.image_size,
        augmentation=config.data.augmentation,
        captions=CaptionChoice.parse(config.data.captions),
        seed=config.seed,
        group=config.data.group,
        label_key=config.data.label_key,
        image_views=config.data.image_views,
        text_views=config.data.text_views,
        is_scaled=config.data.scaled_decode,
        teacher=teacher and teacher.eyes,
        features=teacher and teacher.features,
    )
    return Loader(
        reader,
        process=accelerator.process_index,
        num_processes=accelerator.num_processes,
        workers=config.data.workers,
        max_bad=config.data.max_bad,
    )


def _teacher(
    config: TrainConfig, accelerator: Accelerator, sources: list[ShardSet], plan: Plan
) -> Teacher | None:
    if config.teacher is None:
        return None
    teacher = open_teacher(config.teacher, accelerator.device)
    if teacher.features is not None and accelerator.is_main_process:
        check_features(teacher.features, sources, plan, config.data.max_bad)
    return teacher


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
        "teacher": config.teacher is not None,
    }
    return [field for field, is_asked in asked.items() if is_asked]
