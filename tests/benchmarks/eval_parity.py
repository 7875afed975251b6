"""Evaluation against CLIP_benchmark 1.6.2: the same figures, in less time.

    python tests/benchmarks/eval_parity.py                       # on pictures drawn here
    python tests/benchmarks/eval_parity.py DATA MODEL            # on shards, by a checkpoint
    python tests/benchmarks/eval_parity.py DATA MODEL --full     # and retrieval at its full size
    python tests/benchmarks/eval_parity.py --quick               # ours alone, small: does it run?

Both sides read one CLIP_benchmark folder with the same checkpoint in fp32 and one thread, in turns,
each time in a new process. The peer is its command line as it is, in an environment that is made
once under `.bench/`. A ratio above 1 means that ours is better.
"""

import argparse
import copy
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from peers.clip_benchmark_eval import PACKAGES, cpu_seconds
from peers.environment import environment

from data_pipelines.shards import open_shards
from data_pipelines.toy import draw_evaluation
from eval.evaluators.compositional import Compositional
from eval.features import Encode
from eval.prompts import read_templates
from eval.ranking import Pairs, match_auc, match_ranks
from eval.run import How, evaluate
from vlp.checkpoint import load_encoder, save_encoder
from vlp.classifier import build_classifier
from vlp.console import show_table, speaking
from vlp.encoder import DualEncoder, create_encoder, read_config
from vlp.image import decode
from vlp.tokenizer import create_tokenizer
from vlp.types import Sample

CACHE = Path(__file__).parents[2] / ".bench"
PEER = Path(__file__).parent / "peers" / "clip_benchmark_eval.py"
TEMPLATES = ("{c}", "a picture of {c}", "a drawing of {c}", "{c}, drawn", "an icon of {c}")
NUM_DRAWN, NUM_ITEMS, NUM_SHARDS = 600, 400, 2
FULL = (100_000, 500_000)
"""Images and captions of the largest retrieval."""
TIMEOUT_SECONDS = 1800
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
"""Of both sides; a thread that waits uses no processor time on a machine with other work."""
SAME = {
    "zero-shot": {
        "acc1": "zero_shot/acc@1",
        "acc5": "zero_shot/acc@5",
        "mean_per_class_recall": "zero_shot/mean_per_class_recall",
    },
    "retrieval": {
        f"{peer}_retrieval_recall@{k}": f"retrieval/{ours}/recall@{k}"
        for peer, ours in (("image", "text_to_image"), ("text", "image_to_text"))
        for k in (1, 5, 10)
    },
    "SugarCrepe-style": {"text_acc": "compositional/accuracy"},
}
"""What the peer calls each figure, and what we do."""


def main() -> None:
    options = parse()
    if options.as_ours:
        print(json.dumps(measure_ours(json.loads(options.as_ours))))
    elif options.as_ranks:
        print(json.dumps(rank(*options.as_ranks)))
    elif options.quick:
        try_out()
    else:
        compare(options)


def try_out() -> None:
    """Run what needs no environment of CLIP_benchmark's once, on few pictures."""
    folder = write_benchmark(list(draw_evaluation(32, 0)), CACHE / "tried")
    told = {"model": str(random_model(CACHE / "tiny").resolve()), "folder": str(folder)}
    found = in_process([sys.executable, __file__, "--as-ours", json.dumps(told)])
    show_table(("figure", "vlp"), sorted(found["metrics"].items()))
    show_ranks(200, 1000)


def compare(options: argparse.Namespace) -> None:
    """Print the figures of both sides, the time of both, and what large sets take."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    python = environment(CACHE / "clip_benchmark", PACKAGES)
    model = (options.model or random_model(CACHE / "tiny")).resolve()
    samples = (
        list(open_shards(options.data)) if options.data else list(draw_evaluation(NUM_DRAWN, 0))
    )
    told = {"batch_size": 64, "workers": NUM_SHARDS, "model": f"local-dir:{model}"}
    told["runs"] = runs_of_peer(write_benchmark(samples, CACHE / "benchmark"))
    ours_told = {"model": str(model), "folder": str(CACHE / "benchmark")}
    peers, ours = [], []
    for number in range(options.pairs):
        peers.append(in_process([str(python), str(PEER), json.dumps(told)]))
        own = [sys.executable, __file__, "--as-ours", json.dumps(ours_told)]
        ours.append(in_process(own))
        print(f"pair {number + 1} of {options.pairs}: {seconds_of(peers[-1]):.1f} s of the peer, "
              f"{ours[-1]['seconds']:.1f} s ours", flush=True)  # fmt: skip
    show_figures(peers[0], ours[0]["metrics"])
    show_times(peers, ours)
    show_classifier(options.classifier_pairs)
    show_ranks(*(FULL if options.full else (10_000, 50_000)))
    print(f"{len(samples)} pictures read, {time.perf_counter() - began:.0f} s in all.")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="shards of pictures with captions")
    parser.add_argument("model", type=Path, nargs="?", help="checkpoint folder")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--classifier-pairs", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="rank 100,000 x 500,000 features")
    parser.add_argument("--quick", action="store_true", help="ours alone, on 32 pictures")
    parser.add_argument("--as-ours", help=argparse.SUPPRESS)
    parser.add_argument("--as-ranks", type=int, nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_benchmark(samples: list[Sample], folder: Path) -> Path:
    """Write pictures in CLIP_benchmark's layout, once as classes, once as captions, and items.

    The class of a picture is its caption; for retrieval each picture has two captions that no
    other has, since the peer takes equal captions for different ones. Of equal pictures, such as
    the flags of a country and of its islands, one is written: they tie, and the peer's order of
    ties is chance. Pictures are RGB: the peer leaves out transparency, which ours lays on white.
    """
    pictures = {as_png(sample.image): " ".join(sample.text.split()) for sample in samples}
    named = [(name, data) for data, name in pictures.items()]
    names = sorted({name for name, _ in named})
    for kind in ("classes", "captions"):
        (folder / kind / "test").mkdir(parents=True, exist_ok=True)
        (folder / kind / "classnames.txt").write_text("\n".join(names))
        (folder / kind / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES))
        (folder / kind / "test" / "nshards.txt").write_text(str(NUM_SHARDS))
    (folder / "captions" / "dataset_type.txt").write_text("retrieval")
    for number in range(NUM_SHARDS):
        shard = folder / "classes" / "test" / f"{number}.tar"
        with tarfile.open(shard, "w") as tar:
            for row in range(number, len(named), NUM_SHARDS):
                name, data = named[row]
                add(tar, f"{row:06d}.png", data)
                add(tar, f"{row:06d}.cls", str(names.index(name)).encode())
                add(tar, f"{row:06d}.txt", f"{name}, {row}\npicture {row} of {name}".encode())
        link = folder / "captions" / "test" / shard.name
        link.unlink(missing_ok=True)
        link.symlink_to(shard)
    (folder / "items" / "val2017").mkdir(parents=True, exist_ok=True)
    items = {}
    for row, (name, data) in enumerate(named[:NUM_ITEMS]):
        (folder / "items" / "val2017" / f"{row}.png").write_bytes(data)
        other = names[(names.index(name) + 1) % len(names)]
        items[str(row)] = {"filename": f"{row}.png", "caption": name, "negative_caption": other}
    (folder / "items" / "replace_att.json").write_text(json.dumps(items))
    return folder


def as_png(data: bytes) -> bytes:
    buffer = io.BytesIO()
    decode(data).save(buffer, "PNG")
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def runs_of_peer(folder: Path) -> dict[str, list[str]]:
    """Return the options of each of the peer's runs."""
    classes = ["--dataset", "wds/classes", "--dataset_root", str(folder / "classes")]
    captions = ["--dataset", "wds/captions", "--dataset_root", str(folder / "captions")]
    items = ["--dataset", "sugar_crepe/replace_att", "--dataset_root", str(folder / "items")]
    return {
        "zero-shot": [*classes, "--task", "zeroshot_classification"],
        "retrieval": [*captions, "--task", "zeroshot_retrieval", "--recall_k", "1", "5", "10"],
        "SugarCrepe-style": [*items, "--task", "image_caption_selection"],
    }


def measure_ours(told: dict[str, Any]) -> dict[str, Any]:
    """Return our figures, and the seconds that zero-shot and retrieval took, in this process."""
    torch.set_num_threads(1)
    folder = Path(told["folder"])
    began, used = time.perf_counter(), cpu_seconds()
    with speaking("json"):
        found = evaluate(
            told["model"],
            str(folder / "captions" / "test"),
            tasks=["retrieval", "zero_shot"],
            how=How(draws=0, batch_size=64),
        )
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - used
    items = folder / "items"
    evaluator = Compositional(
        benchmark="sugar_crepe",
        files=str(items / "replace_att.json"),
        images=str(items / "val2017"),
    )
    nothing: Any = None  # it reads files of its own
    result = evaluator(Encode(load_encoder(told["model"])), nothing)
    return {"seconds": seconds, "cpu": cpu, "metrics": found["metrics"] | result.figures}


def in_process(command: list[str]) -> dict[str, Any]:
    """Return what a new process reports of itself in its last line."""
    done = subprocess.run(
        command,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} stopped:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def seconds_of(peer: dict[str, Any], kind: str = "seconds") -> float:
    return peer["zero-shot"][kind] + peer["retrieval"][kind]


def show_times(peers: list[dict[str, Any]], ours: list[dict[str, Any]]) -> None:
    """Print what zero-shot and retrieval took together, by the clock and of the processor.

    On a machine with other work, the peer's workers are processes of their own and get a share
    each: by the clock it then looks better than it is.
    """
    rows = []
    for kind, name in (("seconds", "seconds"), ("cpu", "processor seconds")):
        theirs, own = [seconds_of(peer, kind) for peer in peers], [one[kind] for one in ours]
        ratios = [a / b for a, b in zip(theirs, own, strict=True)]
        medians = [f"{statistics.median(side):.1f}" for side in (theirs, own)]
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        rows.append((name, *medians, f"{statistics.median(ratios):.2f}", spread))
    show_table(("zero-shot and retrieval", "CLIP_benchmark", "vlp", "ratio", "spread"), rows)


def show_figures(peer: dict[str, Any], ours: dict[str, float]) -> None:
    """Print each figure of both sides and how far they are apart."""
    rows = []
    for run, names in SAME.items():
        for theirs, own in names.items():
            apart = abs(peer[run][theirs] - ours[own])
            sides = (f"{peer[run][theirs]:.6f}", f"{ours[own]:.6f}")
            rows.append((f"{run} {theirs}", *sides, f"{apart:.1e}"))
    show_table(("figure", "CLIP_benchmark", "vlp", "apart"), rows)


def show_classifier(pairs: int) -> None:
    """Print what a class of 80 templates takes open_clip and us, ViT-B/32 with random weights."""
    torch.manual_seed(0)
    config = read_config("ViT-B-32")
    peer = open_clip.CustomTextCLIP(**config["model_cfg"]).eval()
    ours = DualEncoder(copy.deepcopy(peer), config, create_tokenizer({})).eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    few, many = IMAGENET_CLASSNAMES[:1], IMAGENET_CLASSNAMES[:20]
    templates, times, apart = read_templates("imagenet"), [], 0.0
    for _ in range(pairs):
        began = time.process_time()
        with torch.no_grad():
            wanted = open_clip.build_zero_shot_classifier(
                peer, tokenizer, few, OPENAI_IMAGENET_TEMPLATES, device="cpu"
            )
        middle = time.process_time()
        found = build_classifier(ours, many, templates)
        end = time.process_time()
        times.append(((middle - began) / len(few), (end - middle) / len(many)))
        apart = (found[: len(few)] - wanted.T).abs().max().item()
    ratios = [theirs / own for theirs, own in times]
    columns = ("zero-shot classifier, 80 templates", "open_clip", "vlp", "ratio", "spread", "apart")
    seconds = [f"{1000 * statistics.median(side):.0f}" for side in zip(*times, strict=True)]
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    row = (
        "processor seconds for 1,000 classes",
        *seconds,
        f"{statistics.median(ratios):.2f}",
        spread,
    )
    show_table(columns, [(*row, f"{apart:.1e}")])
    print(f"Timed on {len(few)} classes (open_clip) and {len(many)} (vlp), times 1,000 / classes.")


def show_ranks(images: int, texts: int) -> None:
    """Print what both directions of retrieval take above the features."""
    found = in_process([sys.executable, __file__, "--as-ranks", str(images), str(texts)])
    print(
        f"Ranks and AUC of {images:,} images and {texts:,} captions, dim 512, both directions, "
        f"{found['threads']} threads: {found['seconds']:.0f} s ({found['cpu']:.0f} of the "
        f"processor), {found['mib']:.0f} MiB above the features."
    )
    share = FULL[0] * FULL[1] / (images * texts)
    if share > 1:
        print(
            f"By the number of pairs, {FULL[0]:,} x {FULL[1]:,} would take {share:.0f} times as "
            f"long, {share * found['cpu']:.0f} s of the processor (not measured)."
        )


def rank(images: int, texts: int) -> dict[str, float]:
    """Return the seconds and MiB that ranking random features takes, in this process."""
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    image, text = (torch.randn(count, 512) for count in (images, texts))
    for rows in (image, text):
        rows /= rows.norm(dim=1, keepdim=True)
    matches = torch.stack([torch.arange(texts) // (texts // images), torch.arange(texts)], 1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of making the features is forgotten
    before, began, used = memory_mib("VmHWM"), time.perf_counter(), time.process_time()
    pairs = Pairs(image, text, matches)
    match_ranks(pairs)
    match_auc(pairs)
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    mib = memory_mib("VmHWM") - before
    return {"seconds": seconds, "cpu": cpu, "mib": mib, "threads": threads}


def memory_mib(field: str) -> float:
    """Return a line of this process's status, such as its largest size so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def random_model(folder: Path) -> Path:
    """Return a checkpoint of a small encoder with random weights."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    save_encoder(create_encoder(read_config("tiny")), folder)
    return folder


if __name__ == "__main__":
    main()
