"""Validation: the same for any number of processes, checked before the run, seen on the way."""

import os
import signal
import socket

import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.nn.modules.batchnorm import _BatchNorm
from training_support import colours, rows, spoil, train

from data_pipelines.encoded import EncodedSet, encode_shards
from data_pipelines.shards import open_shards
from training.objective import build_objective
from training.run_folder.report import REPORT
from training.signals import SaveRequests
from training.validation import open_validation, validate
from vlp.checkpoint import load_encoder
from vlp.encoder import create_encoder, read_config
from vlp.errors import Stopped, UserError
from vlp.manifest import damage
from vlp.processes import Processes

TASKS = ["retrieval", "zero_shot(classes=['red', 'green', 'blue', 'black'], label='colour')"]


def one_rank(rank: int, processes: int, port: int, shards: str, out: str) -> None:
    """Validate and encode as one of several processes; write down what was found."""
    torch.set_num_threads(1)
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in told.items()} | {"MASTER_ADDR": "127.0.0.1"}
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    encoder, calls = create_encoder(read_config("tiny")), []
    for module in encoder.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.running_mean += rank  # as each process has its own after a step
    encoder.register_forward_hook(lambda *_: calls.append(1))
    objective = build_objective(["softmax"])
    figures = validate(encoder, open_validation(shards, TASKS), objective)
    encoded = encode_shards(
        encoder.eval(),
        open_shards(shards),
        batch_size=8,
        processes=Processes.started(),
    )
    torch.save((figures, shown(encoded), len(calls)), f"{out}/{processes}_{rank}.pt")
    accelerator.end_training()


def shown(encoded: EncodedSet) -> tuple:
    keys = [encoded.dataset.keys[row] for row in encoded.rows]
    assert keys == [sample.key for sample in encoded.samples]
    features = encoded.image.double().numpy().tobytes() + encoded.text.double().numpy().tobytes()
    return keys, encoded.faults.as_dict(), features


@pytest.mark.parametrize("several", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_any_number_of_processes_finds_the_same_and_calls_the_encoder_equally_often(
    several, tmp_path
):
    # 37 entries in batches of 8: of three processes one has a batch less than the others, and of
    # the one batch of the validation the others have none.
    shards = spoil(tmp_path / "shards", 37, every=5)
    found = {}
    for processes in (1, several):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        told = (processes, port, str(shards), str(tmp_path))
        # fork: a spawned process would have to import this file by name.
        mp.start_processes(one_rank, told, nprocs=processes, start_method="fork")
        of_ranks = [
            torch.load(tmp_path / f"{processes}_{n}.pt", weights_only=False)
            for n in range(processes)
        ]
        assert len({calls for *_, calls in of_ranks}) == 1
        found[processes] = [(figures, encoded) for figures, encoded, _ in of_ranks]
    figures, (keys, faults, _) = found[1][0]
    assert len(keys) == 29
    assert faults["image ends early"]["count"] == 8
    assert 0 <= figures["validation/zero_shot/acc@1"] <= 1
    assert found[several] == found[1] * several


def test_a_batch_of_nothing_readable_and_the_size_of_batches_change_nothing(tmp_path, encoder):
    shards = open_shards(str(spoil(tmp_path / "shards", 10, every=1)))
    assert not encode_shards(encoder, shards).samples
    mixed = open_shards(str(spoil(tmp_path / "mixed", 12, every=2)))
    one, whole = encode_shards(encoder, mixed, batch_size=1), encode_shards(encoder, mixed)
    assert shown(one)[:2] == shown(whole)[:2]
    torch.testing.assert_close(one.image, whole.image, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colours(tmp_path_factory.mktemp("data") / "shards", 48)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run of four steps, validated twice, by two evaluators."""
    out = tmp_path_factory.mktemp("run") / "run"
    told = ("--steps", "4", "--validate-every", "2", "--save-every", "2")
    train(out, data, *told, "--data.validation", str(data), "--tasks", *TASKS)
    return out


def test_evaluators_run_on_their_cadence_and_are_seen_in_report_and_card(run):
    seen = {row["step"]: row for row in rows(run) if "validation/loss" in row}
    assert list(seen) == [2, 4]
    for step, row in seen.items():
        assert 0 <= row["validation/retrieval/mean_recall@1"] <= 1
        card = (run / "checkpoints" / f"step_{step:07d}" / "README.md").read_text()
        assert f"value: {row['validation/zero_shot/acc@1']}\n" in card
    report = (run / REPORT).read_text()
    assert "<td>zero_shot/acc@1</td>" in report.replace(' class="number"', "")
    assert "4 of 4 steps, finished" in report
    assert "More figures" not in report  # every figure of a plain run has its place


@pytest.mark.slow
def test_cards_of_a_moving_average_leave_the_checkpoint_whole_and_the_report_says_why_it_ended(
    data, tmp_path, monkeypatch
):
    def agree(requests):
        agree.steps += 1
        requests.signal = signal.SIGTERM if agree.steps == 3 else 0
        return bool(requests.signal)

    agree.steps = 0
    monkeypatch.setattr(SaveRequests, "agree", agree)
    told = ("--steps", "4", "--validate-every", "2", "--log-every", "2", "--ema", "0.9")
    with pytest.raises(Stopped):
        train(tmp_path / "run", data, *told, "--data.validation", str(data))
    folder = tmp_path / "run" / "checkpoints" / "step_0000003"
    assert damage(folder) is None
    raw, averaged = ((folder / place / "README.md").read_text() for place in (".", "ema"))
    assert "None are of these weights" in raw
    assert "after 72 image-text pairs" in averaged
    assert "Validated at step 2, before these weights of step 3" in averaged
    assert "model-index" not in raw + averaged
    report = (tmp_path / "run" / REPORT).read_text()
    assert "3 of 4 steps, not finished; 72 samples seen. Stopped by SIGTERM. Written 20" in report
    assert "Of the moving average of the weights" in report


def test_a_checkpoint_with_its_card_is_whole_and_loads(run):
    assert load_encoder(run / "checkpoints" / "step_0000004").dim
    assert load_encoder(run).dim


def test_evaluators_and_trackers_may_change_when_a_run_goes_on(run, data, tmp_path):
    told = ("--steps", "4", "--validate-every", "2", "--save-every", "2", "--trackers")
    before = rows(run)
    train(run, data, *told, "--data.validation", str(data), "--tasks", "retrieval")
    assert rows(run) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "retrival"], "no evaluator called 'retrival'. Did you mean retrieval"),
        (["--tasks", "retrieval", "retrieval"], "both called 'retrieval'"),
        (["--tasks", "zero_shot"], "no classes"),
        (
            ["--tasks", "zero_shot(classes=['cat', 'dog'], label='colour')"],
            "No label is a class: a sample has colour = 'red'",
        ),
        (["--tasks", "zero_shot(classes=['red'], label='animal')"], "No sample has the label"),
        (
            ["--trackers", "tensorbored"],
            "no tracker called 'tensorbored'. Did you mean tensorboard",
        ),
        (["--trackers", "tensorboard", "tensorboard"], "stands twice"),
    ],
)
def test_what_cannot_be_evaluated_or_tracked_is_found_before_the_run(
    options, message, data, tmp_path
):
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", data, "--steps", "1", "--data.validation", str(data), *options)
    assert not (tmp_path / "run").exists()


def test_evaluators_without_held_out_shards_are_refused(data, tmp_path):
    with pytest.raises(UserError, match=r"--tasks needs held-out shards. Write --data.validation"):
        train(tmp_path / "run", data, "--steps", "1", "--tasks", *TASKS)
