"""Commands on checkpoints."""

from pathlib import Path
from typing import Any, Literal


def eval_(
    model: str,
    dataset: str,
    /,
    tasks: tuple[str, ...] = ("retrieval",),
    preset: str | None = None,
    out: Path | None = None,
    features: Path | None = None,
    draws: int = 1000,
    seed: int = 0,
    batch_size: int = 256,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluate a model on a dataset: classification, retrieval, probes, geometry, with intervals.

    Args:
        model: Run folder, checkpoint folder, or a model that open_clip knows.
        dataset: Shards, a folder of classes, a table, COCO's or Flickr30k's Karpathy JSON, or
            ``torchvision:NAME:FOLDER`` and ``hf:FOLDER`` for datasets on this machine.
        tasks: Evaluators, such as ``retrieval`` or ``"zero_shot(classes='classes.json')"``.
        preset: A benchmark in place of tasks, ``datacomp38``: the dataset is then the folder that
            DataComp's ``download_evalsets.py`` wrote, or one with some of the 38.
        out: Folder for ``metrics.json``, ``report.html``, ``table.md`` and what `vlp compare`
            reads; without it the figures are only printed.
        features: Folder that keeps the features: the next evaluation of the same model and dataset
            encodes nothing.
        draws: Of the images with replacement, for the intervals; 0: none.
        seed: Of the draws.
        batch_size: Samples encoded at once.
        overwrite: Replace what another command or config wrote.
    """
    from eval.run import How, evaluate

    how = How(features=features, draws=draws, seed=seed, batch_size=batch_size, overwrite=overwrite)
    if preset:
        from eval.benchmark import evaluate_preset

        return evaluate_preset(model, Path(dataset), preset, out=out, how=how)
    return evaluate(model, dataset, tasks=tasks, out=out, how=how)


def compare(evaluations: tuple[Path, ...], /, figures: tuple[str, ...] = ()) -> dict[str, Any]:
    """Say which differences between evaluated models stand, and what noise they cover.

    Args:
        evaluations: Folders that `vlp eval --out` wrote, of the same dataset. Those of runs that
            differ in nothing but the seed are one model.
        figures: Patterns of the figures that are compared, such as ``*/recall@1``; without it the
            main ones.
    """
    from eval.compare import compare as compare_evaluations

    return compare_evaluations(evaluations, figures=figures)


def classify(
    model: str,
    pictures: str,
    /,
    classes: tuple[str, ...],
    templates: tuple[str, ...] = (),
    part: str | None = None,
    out: Path | None = None,
    abstain: float = 0.0,
    all_classes: bool = False,
    image: str = "image",
    batch_size: int = 256,
    engine: Literal["inline", "pool", "ray"] = "pool",
    workers: int | None = None,
    address: str | None = None,
    overwrite: bool = False,
) -> Any:
    """Name what images show, zero-shot: a file's every class, or the labels of a whole set.

    A model trained with a softmax shares one probability among the names; a model trained with a
    sigmoid gives each name its own.

    Args:
        model: Run folder, checkpoint folder, or a model that open_clip knows.
        pictures: An image file; or shards, a folder of images or a table, with --out.
        classes: The names to choose from; or a file of them, ``classes.txt`` or ``classes.json``.
        templates: Captions around a name, whose features are averaged, such as ``"a photo of a
            {}"``; or a file of them, or ``imagenet`` for CLIP's 80. None: those of the file of
            classes, or else ``"a photo of a {}"`` and ``"{}"``.
        part: Which of the class lists of a nested ``classes.json``, such as ``concept.train``.
        out: ``.csv`` or ``.parquet`` file for the key, label and probability of each image.
        abstain: Probability below which an image of a set is given no label.
        all_classes: Write the probability of every class, too.
        image: Column of a table that names the image.
        batch_size: Images encoded at once.
        engine: ``pool`` of processes, ``inline`` in this one, or ``ray``.
        workers: Processes of the pool, or actors.
        address: Of the Ray cluster.
        overwrite: Replace the file.
    """
    from data_pipelines.engine import Engine
    from eval.classify import classify_all, classify_file, read_labels

    labels = read_labels(classes, templates, part=part, abstain=abstain, all_classes=all_classes)
    if out is None:
        return classify_file(model, pictures, labels)
    return classify_all(
        model,
        pictures,
        out,
        labels,
        image=image,
        batch_size=batch_size,
        engine=Engine(kind=engine, workers=workers, address=address),
        overwrite=overwrite,
    )
