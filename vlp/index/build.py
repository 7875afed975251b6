"""Features to an index."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vlp.console import show
from vlp.errors import UserError
from vlp.features import Stacked, read_metadata, stack
from vlp.index.folder import SEGMENTS, State, write_state
from vlp.index.plan import Plan
from vlp.index.segment import new_segment, write_plan, write_rows
from vlp.output import output_folder, read_record

PROBED = 256


def build_index(
    features: Path, out: Path, *, model: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Build an index over image features.

    Args:
        features: What `vlp embed` or clip-retrieval wrote.
        out: Folder to write.
        model: That made the features, where it is not written beside them.
        overwrite: Replace what another command or config wrote.

    Raises:
        UserError: The folder holds no image features, the model is not known, or ``out`` is
            another's.
    """
    rows, metadata = read_source(features)
    config = {**maker(features, model), "features": str(features)}
    with output_folder(out, "index", config, inputs=[features], overwrite=overwrite) as part:
        with new_segment(part / SEGMENTS / "000001") as segment:
            write_rows(segment, rows, metadata, 0)
            write_plan(segment, Plan(), None)
        made = maker(features, model)
        write_state(
            part,
            State(
                model=made["model"],
                model_hash=made["model_hash"],
                dim=rows.dim,
                next_id=len(rows),
                segments=("000001",),
            ),
        )
    show(f"Indexed {len(rows)} features of {features} into {out}, exact.")
    return {"features": len(rows), "dim": rows.dim, "out": str(out)}


def read_source(features: Path) -> tuple[Stacked, pa.Table]:
    """Return the image features of a folder, and what they are.

    Raises:
        UserError: There are none, or they and their metadata are not as many.
    """
    rows, metadata = stack(features, "image"), read_metadata(features)
    if len(rows) != len(metadata):
        raise UserError(
            f"{features} has {len(rows)} features but {len(metadata)} rows of metadata."
        )
    if not len(rows):
        raise UserError(f"{features} holds no feature at all: an empty set cannot be searched.")
    return rows, metadata


def identity(rows: Stacked, metadata: pa.Table) -> str:
    """Return 16 hex digits of the samples and of the numbers of some of their features."""
    digest = hashlib.sha256(f"{len(rows)} {rows.dim}".encode())
    for place in np.unique(np.linspace(0, len(rows) - 1, PROBED).astype(int)).tolist():
        digest.update(rows[place : place + 1].tobytes())
        digest.update(str(metadata["key"][place]).encode())
    return digest.hexdigest()[:16]


def maker(features: Path, model: str | None) -> dict[str, str]:
    """Return the model that made features, and its hash."""
    record = read_record(features)
    if record is not None and record["command"] == "embed" and model is None:
        return {name: record["config"][name] for name in ("model", "model_hash")}
    if model is None:
        raise UserError(f"Which model made {features} is not written there. Name it with --model.")
    from vlp.checkpoint import encoder_hash, load_encoder  # takes seconds

    return {"model": model, "model_hash": encoder_hash(load_encoder(model))}
