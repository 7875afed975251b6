"""Save and load an encoder: ``open_clip_config.json`` and ``open_clip_model.safetensors``.

The folder is what open_clip calls ``local-dir:``, so plain open_clip loads it too. Weights come
from safetensors or from ``torch.load(weights_only=True)``: a checkpoint can never run code.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlp.console import say
from vlp.encoder import (
    DualEncoder,
    architectures,
    create_encoder,
    open_clip_config,
    open_clip_weights,
    read_config,
    save_text_files,
)
from vlp.errors import UserError
from vlp.manifest import damage
from vlp.output import write_json
from vlp.weights import fetch_weights

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
AVERAGED = "ema"
"""Folder in a run's checkpoint that holds the moving average of its weights, a checkpoint too."""


def save_encoder(
    encoder: DualEncoder, folder: Path, state: dict[str, Tensor] | None = None
) -> None:
    """Write an encoder into a folder that exists; ``state`` in place of its own where given."""
    save_text_files(encoder, folder)
    save_file(open_clip_weights(encoder, state), folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, open_clip_config(encoder))


def load_encoder(name: str | Path) -> DualEncoder:
    """Return the encoder of a run, a checkpoint or a model that open_clip knows, ready to encode.

    Args:
        name: A run folder (its newest checkpoint, or the moving average of its weights), a
            checkpoint folder, ``hf-hub:org/repo``, ``local-dir:path``, or ``ARCHITECTURE:TAG`` such
            as ``ViT-B-32:laion2b_s34b_b79k``, where TAG may also be a file of weights.

    Raises:
        UserError: There is no such model, or its files are damaged.
    """
    source = find_model(*parse_model(str(name)))
    encoder = create_encoder(source.config, weights=source.weights, folder=source.folder)
    return encoder.eval().requires_grad_(False)


def parse_model(name: str) -> tuple[str, str | None]:
    """Return the architecture or the place of a model as ``load_encoder`` takes it, and its tag.

    Raises:
        UserError: It is a file, or an architecture alone.
    """
    if os.path.exists(name):  # and not Path.exists, which raises for names too long
        if os.path.isfile(name):
            raise UserError(f"{name} is a file, not a model. Give a run or checkpoint folder.")
        name = f"local-dir:{name}"  # a folder may bear the name of an architecture
    is_whole = name.startswith(("hf-hub:", "local-dir:"))
    architecture, tag = (name, None) if is_whole else name.partition(":")[::2]
    if not is_whole and not tag:
        raise UserError(
            f"There is no model {name}. Give a run folder, a checkpoint folder, hf-hub:org/repo "
            f"or ARCHITECTURE:TAG such as ViT-B-32:laion2b_s34b_b79k."
        )
    return architecture, tag


class ModelSource(NamedTuple):
    """Where an encoder comes from."""

    config: dict[str, Any]
    weights: str | Path | None
    """None for an architecture alone."""
    folder: Path | None
    """The checkpoint folder, where there is one."""


def find_model(name: str, weights: str | None = None) -> ModelSource:
    """Return the config and weights of an architecture, a run, a checkpoint or a hub's model.

    A folder with the name of an architecture is meant only as ``./NAME`` or ``local-dir:NAME``.

    Raises:
        UserError: There is no such model.
    """
    path = Path(name.removeprefix("local-dir:"))
    if path.is_dir() and name not in architectures():
        folder = find_checkpoint(path)
        return ModelSource(read_config(str(folder)), weights or _weights_in(folder), folder)
    return ModelSource(*fetch_weights(name, weights, read_config(name)), None)


def paths_of(*names: str | None) -> list[Path]:
    """Return the files and folders that models or weights are named by, where they are any."""
    paths = [name.removeprefix("local-dir:").partition(":")[::2] for name in names if name]
    found = [part for whole in paths for part in whole if part and os.path.exists(part)]
    return [Path(part) for part in found]


def load_weights(encoder: DualEncoder, folder: Path) -> None:
    """Load a checkpoint of ours into an encoder of the same architecture, exactly.

    Raises:
        UserError: The checkpoint is damaged or of another architecture.
    """
    try:
        state = load_file(folder / WEIGHTS)
        for name in ("logit_scale", "logit_bias"):
            if name in state:
                state[name] = state[name].reshape(1)
        encoder.load_state_dict(state)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"The checkpoint {folder} is damaged or of another architecture: "
            f"{str(error).splitlines()[0]}"
        ) from None


def find_checkpoint(folder: Path) -> Path:
    """Return the folder itself if it is a checkpoint, else the newest whole one of the run.

    Of a run with a moving average of its weights it is the average's.

    Raises:
        UserError: It is neither, or all checkpoints are damaged.
    """
    if (folder / CONFIG).is_file():
        return folder
    saved, files = list_checkpoints(folder), (WEIGHTS, CONFIG)
    for checkpoint in reversed(saved):
        averaged = checkpoint / AVERAGED
        found = damage(checkpoint, [*files, *(f"{AVERAGED}/{name}" for name in files)])
        if found is None and (averaged / CONFIG).is_file():
            say(f"{folder}: the moving average of its weights is taken, {averaged}.")
            return averaged
        if found is None:
            return checkpoint
        say(f"The checkpoint {checkpoint} is damaged ({found}); the one before is taken.")
    if saved:
        raise UserError(f"All checkpoints of {folder} are damaged.")
    raise UserError(
        f"{folder} holds no checkpoint. Give the folder that `vlp train --out` wrote, or one "
        f"with {CONFIG}."
    )


def list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first; half-written ones have another name."""
    found = [p for p in (run / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d+", p.name)]
    return sorted((p for p in found if p.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step of a run's checkpoint."""
    return int(checkpoint.name.removeprefix("step_"))


def encoder_hash(encoder: DualEncoder) -> str:
    """Return 16 hex digits of an encoder's weights and config; features of it carry them."""
    digest = hashlib.sha256(json.dumps(open_clip_config(encoder), sort_keys=True).encode())
    for name, value in sorted(open_clip_weights(encoder).items()):
        digest.update(name.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _weights_in(folder: Path) -> Path:
    order = (WEIGHTS, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
    found = next((folder / name for name in order if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder} holds {CONFIG} but no {WEIGHTS}.")
    return found
