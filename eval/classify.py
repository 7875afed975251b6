"""Zero-shot labels for the pictures of shards, a folder or a table, as a table of their own."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from pyarrow.csv import CSVWriter

from data_pipelines.embed import check_sizes, worker_encoder
from data_pipelines.encoded import encode_dataset
from data_pipelines.engine import Engine
from data_pipelines.faults import Faults
from data_pipelines.parts import Part, cut
from eval.prompts import read_classes, read_templates
from vlp.checkpoint import encoder_hash, load_encoder, paths_of
from vlp.classifier import (
    BARE,
    Templates,
    build_classifier,
    check_distinct,
    classify,
    probabilities,
)
from vlp.console import say, show, show_table, speaking
from vlp.encode import to_best_device
from vlp.errors import UserError
from vlp.output import whole_file

TABLES = (".csv", ".parquet")
SHOWN = 20
"""Classes of which the console tells how many pictures they were given to."""
TEMPLATES = ("a photo of a {}", "{}")
"""Where neither the command nor the file of classes has any."""
COLUMNS = ("key", "label", "probability")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """How pictures are labelled, and what of it is written."""

    names: tuple[str, ...]
    templates: Templates
    abstain: float = 0.0
    """Probability of the likeliest class below which a picture is given none, in [0, 1]."""
    all_classes: bool = False
    """Write the probability of every class, in a column with its name."""

    def __post_init__(self) -> None:
        if not 0 <= self.abstain <= 1:
            raise UserError(f"abstain is {self.abstain}, no probability. Write 0 to 1.")
        check_distinct(self.names)
        taken = set(COLUMNS) & set(self.names) if self.all_classes else ()
        if taken:
            raise UserError(
                f"The class {min(taken)!r} has the name of a column. Leave out --all-classes."
            )


def read_labels(
    classes: Sequence[str], templates: Sequence[str], *, part: str | None = None, **options: Any
) -> Labels:
    """Return what class names and templates stand for: themselves, or one file each.

    Args:
        classes: Names, or a file of them.
        templates: Captions, or a file of them; none: those of the file of classes, or else ours.
        part: Which of the class lists of a file.
        options: What else ``Labels`` takes.

    Raises:
        UserError: A file cannot be read, or an option is out of its range.
    """
    is_file = len(classes) == 1 and classes[0].endswith((".json", ".txt"))
    found = read_classes(classes[0] if is_file else classes, part=part)
    own = TEMPLATES if found.templates == BARE else found.templates
    given = read_templates(templates[0] if len(templates) == 1 else templates)
    return Labels(names=found.names, templates=given if templates else own, **options)


def classify_file(model: str, image: str, labels: Labels) -> list[dict[str, Any]]:
    """Return how likely each class is for one image file, the likeliest first.

    Raises:
        UserError: It is no image file.
    """
    if not Path(image).is_file():
        raise UserError(
            f"{image} is no image file. Labels of a set go to a file: --out labels.csv."
        )
    return classify(model, image, classes=labels.names, templates=labels.templates)


def classify_all(
    model: str,
    source: str,
    out: Path,
    labels: Labels,
    *,
    image: str = "image",
    batch_size: int = 256,
    samples_per_part: int = 1000,
    engine: Engine | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a row for each picture: its key, its label and how likely that is.

    The rows are those of ``source`` in its order, whatever the workers. ``label`` is empty where
    the likeliest class is less likely than ``labels.abstain``.

    Args:
        model: Run folder, checkpoint folder, or a model that open_clip knows.
        source: Shards, a folder of pictures or a table, as `vlp embed` takes them.
        out: ``.csv`` or ``.parquet`` file; whole, or not there.
        labels: How pictures are labelled.
        image: Column of a table that names the picture.
        batch_size: Pictures encoded at once.
        samples_per_part: Pictures that a worker takes at a time.
        engine: Where it runs; a pool of processes if None.
        overwrite: Replace a file.

    Raises:
        UserError: ``out`` is there or no table, or there is nothing to classify.
    """
    if out.suffix.lower() not in TABLES:
        raise UserError(f"{out} is no table. Write --out labels.csv or labels.parquet.")
    check_sizes(batch_size=batch_size, samples_per_part=samples_per_part)
    if out.exists() and not overwrite:
        raise UserError(f"{out} is there. Write another --out, or --overwrite.")
    found = cut(source, size=samples_per_part, only="images", image=image, caption="caption")
    encoder = to_best_device(load_encoder(model))
    weights = build_classifier(encoder, labels.names, labels.templates).numpy()
    work = ClassifyPart(
        str(Path(model).resolve()) if paths_of(model) else model,
        encoder_hash(encoder),
        batch_size,
        labels,
        weights,
    )
    say(f"Classifying the pictures of {source} as one of {len(labels.names)} classes ...")
    given, faults = Counter(), Faults()
    faults.merge(found.faults.as_dict())
    with whole_file(out) as file, _Writer(file, out.suffix.lower()) as writer:
        for table, own in (engine or Engine()).run(work, found.parts, what="parts", on_gpu=True):
            writer.write(table)
            given.update(table["label"].to_pylist())
            faults.merge(own)
        if not given:
            raise UserError(f"No picture of {source} could be read ({faults.summary()}).")
    return _told(out, given, faults)


class Classified(NamedTuple):
    """The labels of a part."""

    table: pa.Table
    faults: dict[str, Any]


@dataclass(frozen=True, eq=False)
class ClassifyPart:
    """Labels the pictures of one part; what workers run."""

    model: str
    model_hash: str
    batch_size: int
    labels: Labels
    weights: Float[np.ndarray, "classes dim"]

    def __call__(self, part: Part) -> Classified:
        """Return a row for each picture that can be read."""
        encoder = worker_encoder(self.model, self.model_hash)
        with speaking("quiet"):  # the run has a bar of its own
            encoded = encode_dataset(
                encoder, part.open("images").dataset, only="images", batch_size=self.batch_size
            )
        shares = probabilities(encoder, encoded.image, torch.from_numpy(self.weights))
        best, places = shares.max(dim=1)
        is_sure = (best >= self.labels.abstain).tolist()
        names = self.labels.names
        chosen = [names[n] if sure else None for n, sure in zip(places, is_sure, strict=True)]
        columns: dict[str, Any] = {
            "key": pa.array([sample.key for sample in encoded.samples], pa.string()),
            "label": pa.array(chosen, pa.string()),
            "probability": best.numpy(),
        }
        if self.labels.all_classes:
            columns |= {name: shares[:, place].numpy() for place, name in enumerate(names)}
        return Classified(pa.table(columns), encoded.faults.as_dict())


class _Writer:
    """Writes tables one after the other into a file of either kind."""

    def __init__(self, file: Any, suffix: str) -> None:
        self._file, self._suffix, self._writer = file, suffix, None

    def __enter__(self) -> "_Writer":
        return self

    def write(self, table: pa.Table) -> None:
        if self._writer is None:
            kind = pq.ParquetWriter if self._suffix == ".parquet" else CSVWriter
            self._writer = kind(self._file, table.schema)
        self._writer.write_table(table)

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


def _told(out: Path, given: Counter[str | None], faults: Faults) -> dict[str, Any]:
    """Show and return how many pictures each class was given."""
    total, abstained = given.total(), given.pop(None, 0)
    rows = [(name, count, f"{count / total:.1%}") for name, count in given.most_common(SHOWN)]
    show_table(("class", "pictures", "share"), rows)
    if len(given) > SHOWN:
        show(f"... and {len(given) - SHOWN} more classes.")
    if abstained:
        show(f"{abstained} of {total} pictures have no label: no class is likely enough.")
    show(f"Classified {total} pictures; the labels are in {out}.")
    if faults:
        show(f"Left out: {faults.summary()}.")
    told = {"pictures": total, "abstained": abstained, "classes": dict(given), "out": str(out)}
    return told | ({"faults": faults.as_dict()} if faults else {})
