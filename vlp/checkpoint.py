"""Save and load an encoder: ``open_clip_config.json`` and ``open_clip_model.safetensors``.

The folder is what open_clip calls ``local-dir:``, so plain open_clip loads it too. Weights come
from safetensors or from ``torch.load(weights_only=True)``: a checkpoint can never run code.
"""

import hashlib
import re
from pathlib import Path

from safetensors.torch import save_file

from vlp.encoder import (
    DualEncoder,
    create_encoder,
    fetch,
    open_clip_config,
    open_clip_weights,
    read_config,
    save_text_files,
)
from vlp.errors import UserError
from vlp.output import write_json

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"


def save_encoder(encoder: DualEncoder, folder: Path) -> None:
    """Write an encoder into a folder that exists."""
    save_text_files(encoder, folder)
    save_file(open_clip_weights(encoder), folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, open_clip_config(encoder))


def load_encoder(name: str | Path) -> DualEncoder:
    """Return the encoder of a run, a checkpoint or a model that open_clip knows, ready to encode.

    Args:
        name: A run folder (its newest checkpoint), a checkpoint folder, ``hf-hub:org/repo``,
            ``local-dir:path``, or ``ARCHITECTURE:TAG`` such as ``ViT-B-32:laion2b_s34b_b79k``,
            where TAG may also be a file of weights.

    Raises:
        UserError: There is no such model, or its files are damaged.
    """
    name = str(name)
    folder = Path(name.removeprefix("local-dir:"))
    if folder.exists():
        folder = find_checkpoint(folder)
        encoder = create_encoder(
            read_config(str(folder)), weights=_weights_in(folder), folder=folder
        )
    elif name.startswith("hf-hub:") or ":" in name:
        architecture, _, tag = (name, "", "") if name.startswith("hf-hub:") else name.partition(":")
        config, weights = fetch(architecture, tag or None)
        encoder = create_encoder(config, weights=weights)
    else:
        raise UserError(
            f"There is no model {name}. Give a run folder, a checkpoint folder, hf-hub:org/repo "
            f"or ARCHITECTURE:TAG such as ViT-B-32:laion2b_s34b_b79k."
        )
    return encoder.eval().requires_grad_(False)


def find_checkpoint(folder: Path) -> Path:
    """Return the folder itself if it is a checkpoint, else the newest checkpoint of the run.

    Raises:
        UserError: It is neither.
    """
    if (folder / CONFIG).is_file():
        return folder
    saved = list_checkpoints(folder)
    if not saved:
        raise UserError(
            f"{folder} holds no checkpoint. Give the folder that `vlp train --out` wrote, or one "
            f"with {CONFIG}."
        )
    return saved[-1]


def list_checkpoints(run: Path) -> list[Path]:
    """Return the whole checkpoints of a run, oldest first; half-written ones have another name."""
    found = [p for p in (run / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d+", p.name)]
    whole = [p for p in found if (p / CONFIG).is_file() and (p / WEIGHTS).is_file()]
    return sorted(whole, key=lambda p: int(p.name.removeprefix("step_")))


def model_hash(folder: Path) -> str:
    """Return 16 hex digits of a checkpoint's weights and config: features of it carry them."""
    digest = hashlib.sha256()
    for path in (folder / CONFIG, _weights_in(folder)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _weights_in(folder: Path) -> Path:
    order = (WEIGHTS, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
    found = next((folder / name for name in order if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder} holds {CONFIG} but no {WEIGHTS}.")
    return found
