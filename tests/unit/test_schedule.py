"""Learning rate and stages are functions of the samples seen, the same for any batch size."""

import math
from dataclasses import replace

import pytest

from training.config import TrainConfig
from training.duration import Duration, RunLength
from training.optimization.rules import GroupRule, Stage
from training.optimization.schedule import plan_learning_rate, plan_schedule
from training.options import OptimizerConfig
from vlp.errors import UserError

RUN = RunLength(samples=1000.0, batch_size=10, epoch=250)
COOLED = {"constant": "20%", "reciprocal_sqrt": "20%"}


def naive(shape: str, step: int) -> float:
    """Return the rate of a step of 100, with 10 of warm-up and, where there is one, 20 of fall."""
    if step < 10:
        return (step + 1) / 10
    if shape == "cosine":
        return (1 + math.cos(math.pi * (step - 10) / 90)) / 2
    if shape == "linear":
        return (100 - step) / 90
    rate = 1.0 if shape == "constant" else math.sqrt(10 / step)
    return rate if step <= 80 else rate * (100 - step) / 20


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant", "reciprocal_sqrt"])
def test_every_schedule_equals_its_formula_in_steps(shape):
    options = OptimizerConfig(
        learning_rate=3.0, schedule=shape, warmup="10%", cooldown=COOLED.get(shape, "0%")
    )
    plan = plan_learning_rate(options, RUN)
    for step in range(100):
        assert plan.rate(step * 10) == pytest.approx(3 * naive(shape, step)), step


def test_a_cosine_is_half_way_down_in_the_middle_and_never_0_before_the_end():
    plan = plan_learning_rate(OptimizerConfig(learning_rate=1.0, warmup="0%"), RUN)
    assert plan.rate(0) == 1
    assert plan.rate(500) == pytest.approx(0.5)
    assert 0 < plan.rate(990) < 0.001


def test_the_reciprocal_square_root_has_a_time_scale_of_its_own():
    options = OptimizerConfig(
        schedule="reciprocal_sqrt", learning_rate=1.0, timescale="300 samples"
    )
    plan = plan_learning_rate(replace(options, warmup="0%"), RUN)
    assert plan.rate(300) == pytest.approx(math.sqrt(0.5))
    assert plan.rate(900) == pytest.approx(0.5)


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant", "reciprocal_sqrt"])
@pytest.mark.parametrize("warmup", ["10%", "100 samples", "0.4 epochs"])
def test_half_the_batch_has_the_same_rate_at_the_same_samples_seen(shape, warmup):
    options = OptimizerConfig(schedule=shape, warmup=warmup, cooldown=COOLED.get(shape, "0%"))
    whole = plan_learning_rate(options, RUN)
    half = plan_learning_rate(options, RUN._replace(batch_size=5))
    for samples in range(100, 1000, 10):
        assert half.rate(samples) == whole.rate(samples)
    for samples in range(0, 100, 10):  # a warm-up counts the samples after a step
        assert half.rate(samples + 5) == whole.rate(samples)


@pytest.mark.parametrize(
    ("text", "samples"),
    [
        ("3 steps", 30),
        ("1 step", 10),
        ("1e3 samples", 1000),
        ("1,000 samples", 1000),
        ("1_000 samples", 1000),
        ("0.5 epochs", 125),
        ("5%", 50),
        ("2.5 %", 25),
    ],
)
def test_a_duration_is_a_number_of_samples(text, samples):
    duration = Duration.parse(text, "It")
    assert duration.samples(RUN) == samples
    assert Duration.parse(str(duration), "It") == duration


@pytest.mark.parametrize("text", ["", "5", "-3 steps", "five steps", "5 minutes", "1.2.3 epochs"])
def test_what_is_no_duration_is_refused_with_examples(text):
    with pytest.raises(UserError, match=r'The warm-up is .*Write it as "2000 steps"'):
        OptimizerConfig(warmup=text)


def test_epochs_of_data_without_epochs_are_refused():
    with pytest.raises(UserError, match=r"has no epochs. Write 2 epochs in samples"):
        Duration.parse("2 epochs", "It").samples(RUN._replace(epoch=None))


def test_options_that_do_not_go_together_are_refused():
    with pytest.raises(UserError, match="A cosine falls to 0 by itself"):
        OptimizerConfig(cooldown="10%")
    with pytest.raises(UserError, match="has a time scale"):
        OptimizerConfig(schedule="reciprocal_sqrt", warmup="0%")
    with pytest.raises(UserError, match=r"The layer decay is 1.5"):
        OptimizerConfig(layer_decay=1.5)
    with pytest.raises(UserError, match=r"The length is 5%"):
        TrainConfig(length="5%")


def test_the_length_of_a_run_is_rounded_up_to_batches():
    config = TrainConfig(samples=1000)
    assert config.num_steps(None) == 4  # of 256
    assert config.run_length(None).samples == 1000
    assert replace(config, samples=None, epochs=1.5).run_length(11).samples == 16


def test_stages_follow_each_other_by_samples_seen():
    stages = ("25%: freeze=visual", "30 steps: lr=0.5 warmup=10 steps", "rest")
    config = TrainConfig(stages=stages, optimizer=OptimizerConfig(warmup="0%"))
    schedule = plan_schedule(config, RUN)
    assert [schedule.stage_at(seen) for seen in (0, 240, 250, 540, 550, 990)] == [0, 0, 1, 1, 2, 2]
    plan = schedule.learning_rate
    assert schedule.rate(240) == plan.rate(240)
    assert schedule.rate(250) == pytest.approx(plan.rate(250) * 0.5 * 0.1)
    assert schedule.rate(340) == pytest.approx(plan.rate(340) * 0.5)
    assert schedule.rate(550) == plan.rate(550)
    assert schedule.lines()[1:] == [
        "From step 0: visual frozen, learning rate x 1.",
        "From step 25: nothing more frozen, learning rate x 0.5.",
        "From step 55: nothing more frozen, learning rate x 1.",
    ]


def test_a_warmup_longer_than_the_run_is_told():
    config = TrainConfig(steps=10, optimizer=OptimizerConfig(warmup="500 steps"))
    (line,) = plan_schedule(config, config.run_length(None)).lines()
    assert line.endswith("after a warm-up of 500 steps, which is longer than the run.")


def test_a_stage_is_read_from_its_text():
    assert Stage.parse("rest") == Stage(length=None)
    assert Stage.parse("10%: freeze=visual,text[:-2] lr=0.1 warmup=20 steps") == Stage(
        length=Duration(10, "%"),
        freeze=("visual", "text[:-2]"),
        rate=0.1,
        warmup=Duration(20, "steps"),
    )


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (("50%", "60%"), r"110% of the run"),
        (("rest", "50%"), r"Only the last"),
        (("50%: lock=visual", "rest"), r"no lock.*freeze"),
        (("50%: freeze=", "rest"), r"write what it freezes"),
        (("50%: lr=x", "rest"), r"lr is a factor from 0"),
        (("half", "rest"), r"The length of stage 'half' is 'half'"),
    ],
)
def test_what_are_no_stages_is_refused(stages, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(stages=stages)


@pytest.mark.parametrize("stages", [("2000 steps", "rest"), ("50 steps", "20 steps")])
def test_stages_that_are_not_as_long_as_the_run_are_refused(stages):
    with pytest.raises(UserError, match=r"samples long, the run 1,000"):
        plan_schedule(TrainConfig(stages=stages), RUN)


def test_a_group_is_read_from_its_text():
    rule = GroupRule.parse("visual.*: lr=0.1 decay=0 layer-decay=0.75")
    assert rule == GroupRule(pattern="visual.*", rate=0.1, decay=0.0, layer_decay=0.75)
    rule = GroupRule.parse("visual[:-2]: freeze")
    assert rule == GroupRule(pattern="visual[:-2]", is_frozen=True)


@pytest.mark.parametrize("text", ["visual", ": freeze", "visual: ", "visual: freeze=1"])
def test_what_is_no_group_is_refused(text):
    with pytest.raises(UserError, match="Cannot read the group"):
        OptimizerConfig(groups=(text,))
    with pytest.raises(UserError, match=r"no rate"):
        OptimizerConfig(groups=("visual: rate=0.1",))
