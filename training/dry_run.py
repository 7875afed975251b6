"""A run that is not run: everything is built of shapes alone, checked, and told."""

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_pipelines.captions import caption_key
from data_pipelines.hard_captions import HardCaptions
from data_pipelines.plan import Plan, check_processes
from data_pipelines.shards import ShardSet
from data_pipelines.tally import Tally
from training.compute.footprint import Share, footprint, to_shapes
from training.config import TrainConfig
from training.optimization.groups import frozen_names
from training.optimization.schedule import Schedule
from training.options import ModelConfig
from training.reading import build_reader
from training.run_folder.folder import check_out
from training.setup import Basis, check_teacher, open_basis, set_up_encoder
from training.teachers import Teacher, is_stored, open_teacher
from vlp.checkpoint import find_checkpoint, list_checkpoints, parse_model
from vlp.console import say, show, show_table
from vlp.contact_sheet import contact_sheet
from vlp.encoder import DualEncoder, architectures, create_encoder, read_config
from vlp.errors import UserError
from vlp.tokenizer import Tokenizer

PICTURES = 32
"""Of the first batch, on the contact sheet."""
COLUMNS = 8
EXAMPLES = 6
"""Captions that are shown with their hard captions."""


def dry_run(
    config: TrainConfig, out: Path, *, processes: int | None = None, overwrite: bool = False
) -> dict[str, Any] | None:
    """Print what a run would be on so many GPUs, and return it; None of all but the first process.

    Weights are not read, so that models that are not on this machine can be planned with, too. The
    first pictures go to ``OUT.first.png`` beside the run folder, which is not made.

    Args:
        config: Of the run. Without shards all is told but the pictures.
        out: Folder that the run would have.
        processes: GPUs; None: as many processes as a launcher started, or 1.
        overwrite: What the run would be told.

    Raises:
        UserError: Anything in the config or the data that the user can mend.
    """
    if int(os.environ.get("RANK", 0)):
        return None
    processes = int(os.environ.get("WORLD_SIZE", 1)) if processes is None else processes
    if processes < 1:
        raise UserError(f"--processes is {processes}. Write 1 or more.")
    check_processes(config.data.batch_size, processes)
    in_bf16 = config.precision in ("auto", "bf16")
    basis = open_basis(config, config.precision, is_main=True)
    plan, schedule = basis.plan, basis.schedule
    num_samples = plan.num_samples if plan else None
    teacher = _teacher(config, basis)
    encoder = _outline(config.model)
    encoder.set_logits(basis.objective.start_scale, basis.objective.start_bias)
    # Shapes alone are not compiled.
    uncompiled = replace(config, speed=replace(config.speed, compile=False))
    set_up_encoder(uncompiled, encoder, basis, processes)
    mode = to_shapes(encoder)
    told = {
        "processes": processes,
        "run_folder": _folder_line(config, out, overwrite=overwrite),
        "parameters": _parameters(encoder, config, schedule),
        "length": _length(config, num_samples),
        "schedule": schedule.lines(),
    }
    gpus: dict[str, Any] = {"processes": processes, "in_bf16": in_bf16, "hard": basis.num_hard}
    sizes = footprint(encoder, mode, config, schedule, teacher=teacher, **gpus)
    told |= {"memory_bytes": sizes.memory, "traffic_bytes": sizes.traffic}
    if plan is not None:
        sheet = out.absolute().with_name(f"{out.absolute().name}.first.png")
        captions = _draw(config, basis.sources, plan, encoder, sheet)
        told["sheet"] = str(sheet)
        if basis.hard_captions:
            told["hard_captions"] = _examples(basis.hard_captions, captions)
    share = Share.of(config, processes, basis.num_hard)
    _show(told, config, processes, share, in_bf16=in_bf16)
    return told


def _teacher(config: TrainConfig, basis: Basis) -> Teacher | None:
    """Return the teacher: its features as they are, an encoder without its numbers."""
    if config.teacher is None:
        return None
    if is_stored(config.teacher):
        teacher = open_teacher(config.teacher, torch.device("cpu"))
        check_teacher(teacher, config, basis)
        return teacher
    name, weights = parse_model(config.teacher)
    outline = _outline(ModelConfig(name=name, weights=weights))
    return Teacher(name=config.teacher, identity="", scale=None, encoder=outline)


def _outline(model: ModelConfig) -> DualEncoder:
    """Return the encoder of a run without its numbers, on the meta device."""
    name = model.name.removeprefix("local-dir:")
    is_folder = Path(name).is_dir() and model.name not in architectures()
    folder = find_checkpoint(Path(name)) if is_folder else None
    config = read_config(str(folder) if folder else model.name)
    given = [path for path in (model.weights, model.image_weights, model.text_weights) if path]
    if given or folder:
        say(
            f"Weights ({' '.join(map(str, given)) or folder}) are not read: shapes are enough here."
        )
    failed = UserError("")
    with torch.device("meta"), tempfile.TemporaryDirectory() as empty:
        for text, source, note in _stand_ins(config["model_cfg"]["text_cfg"], folder, Path(empty)):
            try:
                encoder = create_encoder(
                    {**config, "model_cfg": {**config["model_cfg"], "text_cfg": text}},
                    image_size=model.image_size,
                    context_length=model.context_length,
                    patch_dropout=model.patch_dropout,
                    folder=source,
                )
            except UserError as error:
                failed = error
                continue
            if note:
                say(note)
            return encoder
    raise failed


def _stand_ins(
    text: dict[str, Any], folder: Path | None, empty: Path
) -> Iterator[tuple[dict[str, Any], Path | None, str]]:
    """Yield a text tower's config and folder, then what can take the place of what is not here."""
    yield text, folder, ""
    model, tokenizer = text.get("hf_model_name"), text.get("hf_tokenizer_name")
    less = {name: value for name, value in text.items() if not name.startswith(("hf_tok", "token"))}
    if tokenizer:
        yield less, folder, f"The tokenizer {tokenizer} is not on this machine: CLIP's stands in."
    if model:
        (empty / "config.json").write_text(json.dumps({"model_type": "bert"}))
        yield less, empty, f"The config of {model} is not on this machine: BERT-base's stands in."


def _folder_line(config: TrainConfig, out: Path, *, overwrite: bool) -> str:
    """Return what the run folder would say to this config."""
    try:
        is_new = check_out(out, config, overwrite=overwrite)
    except UserError as error:
        return f"The run would be refused: {error}"
    saved = list_checkpoints(out)
    if saved and not is_new:
        return f"The run would go on from {saved[-1]}."
    return f"The run would start anew in {out}."


def _parameters(
    encoder: DualEncoder, config: TrainConfig, schedule: Schedule
) -> list[dict[str, Any]]:
    """Return how many numbers each part has, and how many of them no stage trains."""
    stages = [frozen_names(encoder, config.optimizer, stage) for stage in schedule.stages]
    never = set.intersection(*stages)
    parts = {"image tower": "visual.", "text tower": "text.", "scale and bias": "logit_"}
    rows = []
    for part, prefix in parts.items():
        own = {n: p.numel() for n, p in encoder.named_parameters() if n.startswith(prefix)}
        frozen = sum(count for name, count in own.items() if name in never)
        total = sum(own.values())
        rows.append({"part": part, "all": total, "trained": total - frozen, "frozen": frozen})
    return rows


def _length(config: TrainConfig, num_samples: int | None) -> dict[str, float | None]:
    steps = config.num_steps(num_samples)
    samples = steps * config.data.batch_size
    epochs = samples / num_samples if num_samples else None
    return {"steps": steps, "samples": samples, "epochs": epochs}


def _draw(
    config: TrainConfig, sources: list[ShardSet], plan: Plan, encoder: DualEncoder, path: Path
) -> list[str]:
    """Draw the first pictures of the first batch, as the encoder would see them.

    Return the captions that were drawn of them.
    """
    heard: list[str] = []

    def encode(captions: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids, cut = encoder.tokenizer.with_cuts(captions)
        heard.extend(f"{c} [cut]" if is_cut else c for c, is_cut in zip(captions, cut, strict=True))
        return ids, cut

    tokenizer = Tokenizer(encode, encoder.tokenizer.length)
    reader = build_reader(config, sources, plan, tokenizer, encoder.image_size)
    count = min(PICTURES, config.data.batch_size)
    views = config.data.image_views
    pixels = torch.empty(views, count, *encoder.image_size, 3, dtype=torch.uint8)
    reader.part(range(count), [pixels], Tally())
    images = [Image.fromarray(np.asarray(image)) for image in pixels[0]]
    captions = heard[:: config.data.text_views]
    pictures = list(zip(images, captions, strict=True))
    rows = [("", pictures[start : start + COLUMNS]) for start in range(0, count, COLUMNS)]
    contact_sheet(rows, path)
    return captions


def _examples(maker: HardCaptions, captions: list[str]) -> dict[str, list[str]]:
    """Return the hard captions of some captions, as the first of their seeds would have them."""
    return {text: maker.of(text, {caption_key(text)}, 0) for text in captions[:EXAMPLES]}


def _show(
    told: dict[str, Any], config: TrainConfig, processes: int, share: Share, *, in_bf16: bool
) -> None:
    """Print all for people."""
    gpus = "1 GPU" if processes == 1 else f"{processes} GPUs"
    show(f"{config.model.name} with {' + '.join(config.loss)} on {gpus}. Nothing is trained.")
    show(told["run_folder"])
    length = told["length"]
    epochs = f", {length['epochs']:.4g} epochs" if length["epochs"] else ""
    show(
        f"Length: {length['steps']:,} steps of {config.data.batch_size:,} "
        f"({config.data.batch_size // processes:,} a GPU), {length['samples']:,} samples{epochs}."
    )
    for line in told["schedule"]:
        show(line)
    show("")
    columns = ("part", "all", "trained", "frozen")
    counts = [
        [row["part"], *(f"{row[c] / 1e6:.3f}" for c in columns[1:])] for row in told["parameters"]
    ]
    show_table(("million parameters", *columns[1:]), counts)
    kind = "bf16 (autocast)" if in_bf16 else "fp32"
    show(f"\nMemory per GPU in {kind}, --sharding {config.sharding}, less what CUDA and NCCL take:")
    _show_sizes(told["memory_bytes"], 2**30, "GiB")
    show(
        f"Activations: what autograd keeps of {share.images_at_once:,} pictures and "
        f"{share.texts_at_once:,} captions at once, counted over a pass of shapes."
    )
    if told["traffic_bytes"]:
        show("\nSent by each GPU in a step, and received as much:")
        _show_sizes(told["traffic_bytes"], 1e9, "GB")
    if "hard_captions" in told:
        show("\nHard captions:")
        rows = [(own, "; ".join(hard) or "none") for own, hard in told["hard_captions"].items()]
        show_table(("caption", ""), rows)
    if "sheet" in told:
        show(f"\nThe first pictures with their captions: {told['sheet']}")


def _show_sizes(sizes: dict[str, float], unit: float, name: str) -> None:
    rows = [[part, f"{size / unit:.3f}"] for part, size in sizes.items()]
    show_table((name, ""), [*rows, ["all", f"{sum(sizes.values()) / unit:.3f}"]])
