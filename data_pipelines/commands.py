"""Commands on shards."""

from pathlib import Path
from typing import Any, Literal

from vlp.errors import UserError


def quickstart(
    out: Path = Path("quickstart"), /, samples: int = 5000, seed: int = 0, overwrite: bool = False
) -> dict[str, Any]:
    """Take the tour: draw a toy world, then run every command on it, in minutes on two cores.

    Args:
        out: Folder for everything that the tour makes.
        samples: Image-text pairs to draw for training, planted defects included.
        seed: Another seed draws another world.
        overwrite: Replace what another tour left in the folder.
    """
    from data_pipelines.quickstart import run

    return run(out, samples=samples, seed=seed, overwrite=overwrite)


def inspect(
    shards: str,
    /,
    sheet: Path | None = None,
    seed: int = 0,
    speed: bool = False,
    workers: int = 2,
    scaled_decode: bool = False,
    words: Path | None = None,
    pipeline: str = "en_core_web_sm",
) -> dict[str, Any]:
    """Show what shards hold: counts, sizes, captions, faults, ten samples, a contact sheet.

    Args:
        shards: Folder of tar files, one tar file, a glob, a brace range, a URL or pipe:COMMAND.
        sheet: PNG file for the contact sheet; none is drawn where no file is named.
        seed: Draws which samples are shown.
        speed: Measure how fast they are read for training, stage by stage, in place of the rest.
        workers: Processes that read, for ``--speed``.
        scaled_decode: Decode large JPEGs at a reduced size, for ``--speed``.
        words: JSON file for the words of all captions by tag, in place of the rest: a vocabulary
            for `vlp train --negatives`.
        pipeline: An installed spaCy pipeline, for ``--words``.
    """
    if words:
        from data_pipelines.word_counts import write_words

        return write_words(shards, words, pipeline=pipeline)
    if speed:
        from data_pipelines.speed import measure_speed

        return measure_speed(shards, workers=workers, is_scaled=scaled_decode, seed=seed)
    if scaled_decode:
        raise UserError("--scaled-decode goes with --speed.")
    from data_pipelines.inspection import inspect_shards

    return inspect_shards(shards, sheet=sheet, seed=seed)


def pack(
    source: Path,
    shards: Path,
    /,
    image: str = "image",
    caption: str = "caption",
    samples_per_shard: int = 1000,
    short_side: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Pack image-text pairs into shards: a folder, or a CSV, TSV, JSONL or Parquet table.

    Args:
        source: Folder of images with ``.txt`` or ``.json`` beside them, a table, or shards.
        shards: Folder to write.
        image: Column of the image: a path (relative to the table) or the encoded bytes.
        caption: Column of the caption, or field of a ``.json`` beside an image.
        samples_per_shard: Samples in each shard but the last.
        short_side: Make larger images this small, in pixels of the shorter side, as JPEG.
        overwrite: Replace what another command or config wrote.
    """
    from data_pipelines.pack import pack as run

    return run(
        source,
        shards,
        image=image,
        caption=caption,
        samples_per_shard=samples_per_shard,
        short_side=short_side,
        overwrite=overwrite,
    )


def filter_(
    raw: str,
    clean: Path,
    /,
    keep: tuple[str, ...],
    samples_per_shard: int = 1000,
    keep_list: bool = False,
    blur_boxes: str | None = None,
    seed: int = 0,
    engine: Literal["pool", "inline", "ray"] = "pool",
    workers: int | None = None,
    address: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Score samples, decide which to keep, write them as new shards, and report the drops.

    Args:
        raw: Shards to read; or Parquet tables about pictures that are not here, for a keep-list.
        clean: Folder to write: shards, ``scores/``, ``report.html`` and ``report.json``.
        keep: Filters, in the order they decide, such as ``"caption_words(min=3)"``; or a preset.
        samples_per_shard: Samples in each shard but the last.
        keep_list: Write ``keep.parquet`` in place of shards, for `vlp train --data.keep`.
        blur_boxes: Field of the metadata, such as face_bboxes, with boxes to blur: lists of left,
            top, right, bottom in [0, 1]. Other pictures are copied byte for byte.
        seed: Draws the order of the output.
        engine: Where it runs: processes of this machine, this process, or a Ray cluster.
        workers: Tasks at once; by default one for each core, or GPU where a model runs.
        address: Of the Ray cluster; by default one is started here.
        overwrite: Replace what another command or config wrote.
    """
    from data_pipelines.engine import Engine
    from data_pipelines.filter import filter_shards

    return filter_shards(
        raw,
        clean,
        keep=keep,
        samples_per_shard=samples_per_shard,
        keep_list=keep_list,
        blur_boxes=blur_boxes,
        seed=seed,
        engine=Engine(kind=engine, workers=workers, address=address),
        overwrite=overwrite,
    )


def mine(
    features: Path,
    shards: str,
    out: Path,
    /,
    by: Literal["image", "text", "mean"] = "mean",
    clusters: int | None = None,
    cap: float | None = None,
    neighbours: int = 0,
    apart: tuple[str, ...] = ("text:0.95", "image:0.95"),
    group: Literal["caption", "label", "image", "none"] = "caption",
    label_key: str = "cls",
    keep: str | None = None,
    exact: int = 100_000,
    batch_size: int = 256,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Find which samples are hard beside each other in a batch, and which must never meet.

    Args:
        features: What `vlp embed` or clip-retrieval wrote of the shards, with any model.
        shards: Shards that will be trained on, as for `vlp train --data.shards`.
        out: Folder to write, for `vlp train --data.mined`.
        by: What samples are alike by: images, captions, or the mean of both features.
        clusters: Number of clusters (spherical k-means); by default one for each two batches.
        cap: Largest size of a cluster in mean sizes, such as 1.5; 1 makes all equal. None: any.
        neighbours: In place of clusters, seeds with so many of their nearest neighbours each.
        apart: Cosines above which two samples are false negatives and never meet in a batch:
            text:0.95 (caption to caption), image:0.95, cross:0.4 (image to caption); cross:0.95x
            is a share of the cosine of either one's own image and caption.
        group: Samples with an equal caption, class or picture never meet, either.
        label_key: Field of the metadata that holds the class, for ``--group label``.
        keep: Keep-list of the samples that will be read, as for `vlp train --data.keep`.
        exact: Samples up to which every pair is compared; beyond, those in cells close by.
        batch_size: Of the run, about: clusters are some times as large. A plan is for any.
        seed: Draws what k-means learns from, and what is shown.
        overwrite: Replace what another command or config wrote.
    """
    from data_pipelines.mine import mine as run
    from data_pipelines.mining.options import MineOptions

    options = MineOptions(
        by=by,
        clusters=clusters,
        cap=cap,
        neighbours=neighbours,
        apart=apart,
        group=group,
        label_key=label_key,
        exact=exact,
        batch_size=batch_size,
        seed=seed,
    )
    return run(features, shards, out, options, keep=keep, overwrite=overwrite)


def embed(
    model: str,
    source: str,
    features: Path,
    /,
    only: Literal["images", "texts"] | None = None,
    pooled: bool = False,
    dtype: Literal["fp32", "fp16"] = "fp32",
    precision: Literal["fp32", "bf16"] = "fp32",
    image: str = "image",
    caption: str = "caption",
    batch_size: int = 256,
    samples_per_part: int = 1000,
    engine: Literal["pool", "inline", "ray"] = "pool",
    workers: int | None = None,
    address: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the image and text features of pairs, in clip-retrieval's layout.

    Args:
        model: Run folder, checkpoint folder, or a model that open_clip knows.
        source: Shards; a folder of images with ``.txt`` or ``.json`` beside them; or a table.
        features: Folder to write: ``img_emb/``, ``text_emb/``, ``metadata/``.
        only: Embed one of the two; of a folder or table it need not have the other.
        pooled: Write ``image_pooled/`` and ``text_pooled/``, too: rows before the projections.
        dtype: Of the numbers on disk.
        precision: Of matrix products: bf16 is faster where the hardware has it, and rounds.
        image: Column of a table that names the image.
        caption: Column of the caption, or field of a ``.json`` beside an image.
        batch_size: Samples encoded at once.
        samples_per_part: Samples in each file, or those of a shard where it has more.
        engine: Where it runs: processes of this machine, this process, or a Ray cluster.
        workers: Tasks at once; by default one for each GPU, or else for each core.
        address: Of the Ray cluster; by default one is started here.
        overwrite: Replace what another command or config wrote.
    """
    from data_pipelines.engine import Engine

    own = Engine(kind=engine, workers=workers, address=address)
    own.begin_early("data_pipelines.embed")
    from data_pipelines.embed import embed as run

    return run(
        model,
        source,
        features,
        only=only,
        pooled=pooled,
        dtype=dtype,
        precision=precision,
        image=image,
        caption=caption,
        batch_size=batch_size,
        samples_per_part=samples_per_part,
        engine=own,
        overwrite=overwrite,
    )
