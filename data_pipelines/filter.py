"""``vlp filter``: score every sample, decide over the whole set, write down what is kept, report.

Scores are on the disk before anything is decided. So another threshold needs no new scoring, a run
that was stopped goes on, and the report can say what each rule alone would drop.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.curation.blur import Blur
from data_pipelines.curation.candidates import keys_of
from data_pipelines.curation.cascade import score_in_rounds
from data_pipelines.curation.decide import decide
from data_pipelines.curation.files import forget
from data_pipelines.curation.materialise import decision_hash, materialise
from data_pipelines.curation.report import Curation, show_funnel, write_report
from data_pipelines.curation.rules import Cost, Rule, parts_of, read_rules
from data_pipelines.curation.scores import ScoredSet
from data_pipelines.curation.tables import find_tables, open_tables
from data_pipelines.engine import Engine
from data_pipelines.faults import Faults
from data_pipelines.keep_list import write_keep_list
from data_pipelines.shards import open_shards
from vlp.console import say, show, warn
from vlp.errors import UserError
from vlp.output import output_folder, take_over

SCORES, SHARDS = "scores", ".shards-*"
"""What a run that was stopped leaves for the next."""
FEW = 2000
"""Samples that cheap filters score sooner than the processes of a pool begin."""
WORTH_COPYING = 0.15
"""Share kept below which reading a copy is quicker than leaving out most of what is read."""


def filter_shards(
    raw: str,
    clean: Path,
    *,
    keep: Sequence[str],
    samples_per_shard: int = 1000,
    keep_list: bool = False,
    blur_boxes: str | None = None,
    seed: int = 0,
    engine: Engine | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the samples that pass every rule as new shards, with their scores and a report.

    The files of a sample go over byte for byte, in an order drawn from the seed. Scores that an
    earlier run left are used again where they are still valid, and a run that was stopped goes on.

    Args:
        raw: Shards; or, for a keep-list, Parquet tables about pictures that are not here.
        clean: Folder to write.
        keep: Rules in their order; see ``read_rules``.
        samples_per_shard: Samples in each shard but the last.
        keep_list: Write which samples pass in place of shards; see ``keep_list.py``.
        blur_boxes: Field of the metadata with boxes, such as of faces, to blur; see ``blur.py``.
        seed: Draws the order of the output and what is sampled for the report.
        engine: Where it runs; a pool of processes if None.
        overwrite: Replace what another command or config wrote.

    Raises:
        UserError: There is no rule, a rule cannot be read, or nothing is left.
    """
    forget()
    rules = read_rules(keep)
    _check(samples_per_shard, keep_list=keep_list, blur_boxes=blur_boxes)
    sources, keys, faults = _open(raw, keep_list=keep_list)
    inputs = [*sources, *([Path(raw)] if Path(raw).is_dir() else [])]
    options = {"samples_per_shard": samples_per_shard, "keep_list": keep_list, "seed": seed}
    config = {"raw": str(raw), "keep": list(keep), "blur_boxes": blur_boxes, **options}
    with output_folder(
        clean, "filter", config, inputs=inputs, overwrite=overwrite, keeps=(SCORES, SHARDS)
    ) as part:
        scored = _begin(clean, part, sources, keys)
        engine = _engine_for(rules, scored, engine or Engine())
        say(f"Scoring {scored.num_samples:,} samples of {raw} ...")
        samples = score_in_rounds(engine, rules, scored, seed=seed)
        decision = decide(rules, scored, samples)
        curation = Curation(raw, clean, rules, scored, samples, decision, faults, seed)
        if not decision.num_kept:
            raise UserError(_nothing_left(curation))
        if keep_list:
            write_keep_list(sources, scored.keys, decision.copies, part)
        else:
            _write_shards(engine, curation, part, samples_per_shard, blur_boxes)
        report = write_report(curation, part)
    show_funnel(report)
    if not blur_boxes:
        _advise(report, keep_list=keep_list)
    return report


def _check(samples_per_shard: int, *, keep_list: bool, blur_boxes: str | None) -> None:
    if samples_per_shard < 1:
        raise UserError(f"samples_per_shard is {samples_per_shard}. Give 1 or more.")
    if blur_boxes and keep_list:
        raise UserError("A keep-list changes no picture. Leave out --keep-list, or --blur-boxes.")


def _open(raw: str, *, keep_list: bool) -> tuple[list[Path], list[list[str]], Faults]:
    """Return the shards, or the tables, that a name stands for, their keys, and what is wrong."""
    tables = find_tables(raw)
    if not tables:
        shards = open_shards(raw)
        return shards.shards, [keys_of(path) for path in shards.shards], shards.faults
    if not keep_list:
        raise UserError(f"{raw} holds tables and no pictures. Add --keep-list to choose from them.")
    return open_tables(tables)


def _begin(clean: Path, part: Path, sources: Sequence[Path], keys: list[list[str]]) -> ScoredSet:
    """Return the scores to begin with: of a run that was stopped, else of an earlier one.

    Whether they are still valid is checked when they are needed. Scores of other shards go, and
    files that were being written.
    """
    scored = ScoredSet(sources, part / SCORES, keys)
    own = {scored.path(n) for n in range(len(sources))}
    for path in sorted((part / SCORES).rglob("*")):
        if path.is_file() and path not in own:
            path.unlink()
    for half in part.glob(f"{SHARDS}/.*.part"):
        half.unlink()
    take_over(clean, part, [str(path.relative_to(part)) for path in own])
    return scored


def _engine_for(rules: Sequence[Rule], scored: ScoredSet, engine: Engine) -> Engine:
    """Return an engine; few samples are scored sooner than the processes of a pool begin."""
    is_cheap = all(part.cost < Cost.MODEL for part in parts_of(rules).values())
    is_small = is_cheap and scored.num_samples <= FEW
    is_open = engine.kind == "pool" and engine.workers is None
    return Engine(kind="inline") if is_small and is_open else engine


def _write_shards(
    engine: Engine,
    curation: Curation,
    part: Path,
    samples_per_shard: int,
    blur_boxes: str | None,
) -> None:
    """Write the shards where a run that is stopped finds those that are whole, then move them."""
    scored, decision, seed = curation.scored, curation.decision, curation.seed
    blur = Blur(blur_boxes) if blur_boxes else None
    how = {"samples_per_shard": samples_per_shard, "seed": seed, "blur": blur}
    told = decision_hash(scored.sources, decision, how)
    folder = part / f".shards-{told}"
    for other in part.glob(SHARDS):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(exist_ok=True)
    written = materialise(engine, scored, decision, folder, **how)
    for path in sorted(folder.iterdir()):
        path.rename(part / path.name)
    folder.rmdir()
    if blur:
        _tell_blurred(blur, sum(shard.blurred for shard in written))


def _tell_blurred(blur: Blur, count: int) -> None:
    if not count:
        warn(f"No sample that is kept has boxes in its field {blur.field!r}: nothing is blurred.")
    show(f"Pictures with boxes that were blurred: {count}.")


def _nothing_left(curation: Curation) -> str:
    """Return one line that names what to loosen."""
    steps, failed = curation.decision.steps, curation.decision.failed
    count, raw = curation.scored.num_samples, curation.raw
    if len(failed) == count:
        return f"None of the {count} samples of {raw} can be scored: {failed.summary()}."
    worst = max(steps, key=lambda step: step.dropped)
    return (
        f"Nothing is left of the {count} samples of {raw}. {worst.rule} dropped most: "
        f"{worst.dropped} of the {worst.dropped + worst.left} that came to it. Loosen that rule."
    )


def _advise(report: dict[str, Any], *, keep_list: bool) -> None:
    """Say which of shards and a keep-list fits the share that is kept."""
    share = report["samples_out"] / report["samples_in"]
    if keep_list and share < WORTH_COPYING:
        say("Few are kept: shards of their own (without --keep-list) are quicker to read.")
    if not keep_list and share > 1 - WORTH_COPYING:
        say("Most are kept: a keep-list (--keep-list) would spare the copy.")
