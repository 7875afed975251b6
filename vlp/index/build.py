"""Features to an index."""

import hashlib
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vlp.console import show
from vlp.errors import UserError
from vlp.features import FOLDERS, Stacked, numbered, read_metadata, stack
from vlp.index.candidates import Family
from vlp.index.choose import choose
from vlp.index.exact import Matrix, Window
from vlp.index.folder import SEGMENTS, STATE, State, load_index, read_state, write_state
from vlp.index.page import write_pages
from vlp.index.plan import Plan
from vlp.index.segment import QUICK, new_segment, write_plan, write_quick, write_rows
from vlp.manifest import MANIFEST
from vlp.output import check_output, output_folder, read_record

PROBED = 256
"""Rows, evenly spread, whose numbers tell features from others of the same folder."""
CODES = 16
"""Different product codes of 4 bits."""
ROWS_PER_PART = 10_000_000


def build_index(
    features: Path,
    out: Path,
    *,
    recall: float = 0.95,
    memory: int | None = None,
    prefix: int | None = None,
    kind: Family | None = None,
    rows_per_part: int = ROWS_PER_PART,
    model: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Build the fastest index over image features that reaches a recall within a memory.

    Built of the same features and options again, nothing is done.

    Args:
        features: What `vlp embed` or clip-retrieval wrote.
        out: Folder to write.
        recall: Share of the exact 10 nearest that is found, of queries like the text features.
        memory: Bytes that the index may take; None: no limit.
        prefix: Coordinates of Matryoshka features that it holds; None: all.
        kind: The only one to try; None: all that fit.
        rows_per_part: Rows of each of the files that are searched as one.
        model: That made the features, where it is not written beside them.
        overwrite: Replace what another command or config wrote.

    Raises:
        UserError: The folder holds no image features, the model is not known, ``out`` is another's,
            or no index does what is asked for.
    """
    rows, metadata = read_source(features)
    _check(recall, prefix, rows.dim, rows_per_part)
    if kind == "ivf_pq" and min(len(rows), rows_per_part) < CODES:
        raise UserError(f"Product codes are learnt from {CODES} rows or more. Leave out --kind.")
    asked = {"recall": recall, "memory": memory, "prefix": prefix, "kind": kind}
    asked |= {"rows_per_part": rows_per_part}
    made = maker(features, model)
    config = {**made, "features": str(features), **asked}
    check_output(out, "index", config, inputs=[features], overwrite=overwrite)
    source = identity(features, rows, metadata)
    if not overwrite and _is_built(out, source):
        show(f"The index {out} is there already.")
        plan = load_index(out).segments[0].plan
        return {"features": len(rows), "dim": rows.dim, "out": str(out), **asdict(plan)}
    with output_folder(out, "index", config, inputs=[features], overwrite=overwrite) as part:
        state = State(
            model=made["model"], model_hash=made["model_hash"], dim=rows.dim, source=source
        )
        plan = _write(part, state, rows, metadata, _queries(features, rows), config)
    show(f"Indexed {len(rows):,} features of {features} into {out}: {plan.kind}.")
    return {"features": len(rows), "dim": rows.dim, "out": str(out), **asdict(plan)}


def _write(
    folder: Path,
    state: State,
    rows: Stacked,
    metadata: pa.Table,
    queries: tuple[Matrix, str],
    config: dict[str, Any],
) -> Plan:
    """Write the segments; what is chosen on the first is what all are searched with."""
    size, choice = config["rows_per_part"], None
    scratch = folder / ".scratch"
    scratch.mkdir()
    for start in range(0, len(rows), size):
        some = metadata.slice(start, size)
        name = f"{len(state.segments) + 1:06d}"
        with new_segment(folder / SEGMENTS / name) as part:
            vectors = write_rows(part, Window(rows, start, len(some)), some, start)
            if choice is None:
                options = {name: config[name] for name in ("recall", "memory", "prefix")}
                choice = choose(
                    vectors,
                    queries[0],
                    scratch,
                    **options,
                    family=config["kind"],
                    share=len(some) / len(rows),
                )
                told = {"features": config["features"], "rows": len(rows), **options}
                write_pages(folder, choice, {**told, "queries": queries[1]})
                if choice.file is not None:
                    choice.file.rename(part / QUICK)
            elif choice.file is not None:
                write_quick(part, choice.plan, folder / SEGMENTS / state.segments[0], vectors)
            write_plan(part, choice.plan)
        state = replace(state, segments=(*state.segments, name), next_id=start + len(some))
    shutil.rmtree(scratch)
    write_state(folder, state)
    assert choice is not None
    return choice.plan


def _is_built(out: Path, source: str) -> bool:
    """Return whether an index is of these features; one of others is built again if nobody cares.

    Raises:
        UserError: It is of others, and was updated since.
    """
    if not (out / STATE).is_file():
        return False
    state = read_state(out)
    if state.source != source and state.generation > 1:
        raise UserError(
            f"The features have changed, and {out} was changed by `vlp update` since it was built. "
            f"Add them with `vlp update {out} --add`, or build it again with --overwrite."
        )
    return state.source == source


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


def _queries(features: Path, rows: Stacked) -> tuple[Matrix, str]:
    """Return what is like what will be asked, and what it is."""
    if any(numbered(features / name, ".npy") for name in FOLDERS["text"]):
        texts = stack(features, "text")
        if texts.dim == rows.dim:
            return texts, "captions"
    return rows, "pictures, since there are no features of texts: texts may find less"


def _check(recall: float, prefix: int | None, dim: int, rows_per_part: int) -> None:
    if not 0 < recall <= 1:
        raise UserError(f"The recall is {recall}. Ask for more than 0 and at most 1.")
    if prefix is not None and not 1 <= prefix < dim:
        raise UserError(f"The prefix is {prefix}. Give fewer than the {dim} coordinates there are.")
    if rows_per_part < 1:
        raise UserError(f"{rows_per_part} rows per part: give 1 or more.")


def identity(features: Path, rows: Stacked, metadata: pa.Table) -> str:
    """Return 16 hex digits of the samples and their features.

    Of features that `vlp embed` wrote by the hashes in its manifest; of others by the numbers of
    some of them.
    """
    digest = hashlib.sha256(f"{len(rows)} {rows.dim}".encode())
    for batch in metadata.to_batches():
        digest.update(batch.serialize())
    for place in np.unique(np.linspace(0, len(rows) - 1, PROBED).astype(int)).tolist():
        digest.update(rows[place : place + 1].tobytes())
    if (features / MANIFEST).is_file():
        digest.update((features / MANIFEST).read_bytes())
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
