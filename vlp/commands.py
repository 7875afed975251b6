"""Commands on a model and an index."""

from pathlib import Path
from typing import Any, Literal


def index(
    features: Path,
    index: Path,
    /,
    recall: float = 0.95,
    memory: str | None = None,
    prefix: int | None = None,
    kind: Literal["exact", "ivf_flat", "ivf_sq", "ivf_pq", "hnsw", "hnsw_sq"] | None = None,
    rows_per_part: int = 10_000_000,
    model: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Build the fastest index over the features of images that reaches a recall within a memory.

    Exact for a small set. For a large one every kind that fits is built, tuned with features of
    texts against exact search, and measured with others: ``report.html`` says what came of each.

    Args:
        features: Folder that ``vlp embed`` or clip-retrieval wrote.
        index: Folder to write.
        recall: Share of the 10 nearest that must be found, above 0 and at most 1.
        memory: Most that the index may take, as 2GB or 500MB.
        prefix: Hold the first so many coordinates of Matryoshka features; all of them rank again.
        kind: The only one to try: an inverted file or a graph, of vectors as they are or of codes.
        rows_per_part: Rows of each of the files that are searched as one.
        model: The model that made the features, where that is not written beside them.
        overwrite: Replace what another command or config wrote.
    """
    from vlp.index import build_index
    from vlp.index.candidates import bytes_of

    return build_index(
        features,
        index,
        recall=recall,
        memory=None if memory is None else bytes_of(memory),
        prefix=prefix,
        kind=kind,
        rows_per_part=rows_per_part,
        model=model,
        overwrite=overwrite,
    )


def update(
    index: Path,
    /,
    add: Path | None = None,
    delete: tuple[str, ...] = (),
    compact: bool = False,
    check: bool = False,
    export: Path | None = None,
    model: str | None = None,
) -> dict[str, Any]:
    """Change an index: add, delete, compact; check it, or write it for a vector database.

    What is done is done in the order of the options. Who is killed on the way leaves the index as
    it was before the step.

    Args:
        index: Folder that ``vlp index`` wrote.
        add: Features, or another index, of the same model; a key that is there is replaced.
        delete: Keys; or a file ending in .txt with a key on each line.
        compact: Make one part of all, without what was deleted.
        check: Read every file and compare its hash.
        export: Parquet or Arrow file for id, vector, key and metadata of each sample.
        model: The model of the features to add, where that is not written beside them.
    """
    from vlp.index.change import update_index

    return update_index(
        index, add=add, delete=delete, compact=compact, check=check, export=export, model=model
    )


def search(
    index: Path,
    query: tuple[str, ...] = (),
    /,
    k: int = 5,
    weights: tuple[float, ...] = (),
    without: tuple[str, ...] = (),
    like: tuple[str, ...] = (),
    where: tuple[str, ...] = (),
    min_percentile: float | None = None,
    fold: float | None = None,
    offset: int = 0,
    model: str | None = None,
    sheet: Path | None = None,
    export: Path | None = None,
) -> list[dict[str, Any]]:
    """Find the images nearest to texts, images, or both.

    `vlp search INDEX photo.jpg "in the snow"` is what the picture and the text have in common, and
    `vlp search INDEX --like 00007 --where "width>=512" language=en` more of what a sample shows.

    Args:
        index: Folder that ``vlp index`` wrote.
        query: Texts, and paths of image files.
        k: How many images to show.
        weights: Of each query, then of each key of ``--like``; below 0 leads away. None: 1 each.
        without: Texts and image files that lead away, each with the weight -1.
        like: Keys of samples of the index to find more of.
        where: Conditions on the metadata, with = != < <= > >= or ~ (contains).
        min_percentile: Show hits only that score above so many % of the index, from 0 to 100.
        fold: Show one of pictures whose cosine is at least this; 0.94 is a near-duplicate.
        offset: Hits to leave out at the start.
        model: The model that made the features, where it has moved since.
        sheet: PNG file for a contact sheet of what was found.
        export: Parquet file for a keep-list of what was found: shards and keys.
    """
    from vlp.search import search as run

    return run(
        index,
        query,
        weights=weights,
        without=without,
        like=like,
        model=model,
        sheet=sheet,
        export=export,
        k=k,
        where=where,
        min_percentile=min_percentile,
        fold=fold,
        offset=offset,
    )


def export(
    model: str,
    out: Path,
    /,
    to: Literal["open_clip", "transformers", "onnx"] = "open_clip",
    average: tuple[str, ...] = (),
    weights: tuple[float, ...] = (),
    alpha: float | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a model, or an average of several, for open_clip, transformers or ONNX, and check it.

    `vlp export RUN OUT --average last=5` averages the newest checkpoints of a run, `--average RUN_B
    RUN_C` is a uniform soup of three models, and `--average start --alpha 0.5` lies half way
    between a fine-tuned model and what it started from (WiSE-FT).

    Args:
        model: Run folder, checkpoint folder, or a model that open_clip knows.
        out: Folder to write.
        to: ``open_clip``; ``transformers``, where the architecture maps to CLIPModel or
            SiglipModel; ``onnx``, a file for each tower (extra ``export``).
        average: More models of the same architecture; or one word: ``last=5``, the newest
            checkpoints of the run, as they are without a moving average; ``start``, what the run
            was fine-tuned from.
        weights: Share of each model, MODEL first, divided by their sum; none: all the same.
        alpha: Share of MODEL, from 0 to 1, where there is one other.
        overwrite: Replace what another config wrote.
    """
    from vlp.export import export as run

    return run(
        model, out, to=to, average=average, weights=weights, alpha=alpha, overwrite=overwrite
    )


def serve(
    index: Path,
    /,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    model: str | None = None,
    remember: int = 10_000,
    concurrent: int = 64,
    timeout: float = 30.0,
    max_megapixels: float = 50.0,
) -> None:
    """Search and classify in a browser and over HTTP, on this machine or with a token on others.

    Args:
        index: Folder that ``vlp index`` wrote.
        host: Address to listen at; 0.0.0.0 lets others in, who must bring the token.
        port: 0 takes any that is free.
        token: What requests must bring; VLP_TOKEN is read, too. Without one, none is asked for on
            this machine, and one is made and printed where others reach it.
        model: The model that made the features, where it has moved since.
        remember: Texts whose features are kept; 0 encodes every text anew.
        concurrent: Requests at work or waiting; more are told to try again (429).
        timeout: Seconds that a request may take.
        max_megapixels: Largest picture that may be sent.
    """
    from vlp.serve.limits import Limits
    from vlp.serve.server import serve as run

    limits = Limits(
        concurrent=concurrent, seconds=timeout, pixels=round(1_000_000 * max_megapixels)
    )
    run(index, host=host, port=port, token=token, model=model, remembered=remember, limits=limits)
