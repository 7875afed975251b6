"""Cadences as texts: what they mean, and what is refused."""

from dataclasses import replace

import pytest

from training.cadence import Cadence
from training.duration import RunLength
from training.recipes import toy
from vlp.errors import UserError

RUN = RunLength(samples=100_000, batch_size=100, epoch=5_000)


def due(text: str, *, batch_size: int = 100, samples: int = 10_000) -> list[int]:
    """Return the samples seen after which something is due."""
    cadence, run = Cadence.parse(text, "save_every"), RUN._replace(batch_size=batch_size)
    starts = range(0, samples, batch_size)
    return [s + batch_size for s in starts if cadence.is_due(s, s + batch_size, run)]


def test_steps_samples_epochs_and_shares_of_the_run_name_the_same_moments():
    assert due("25 steps") == due("25") == due("2_500 samples") == due("0.5 epochs") == due("2.5%")
    assert due("25 steps") == [2500, 5000, 7500, 10_000]


def test_what_no_step_meets_is_due_after_the_step_that_crosses_it():
    assert due("1000 samples", batch_size=300, samples=3000) == [1200, 2100, 3000]
    assert due("10 samples", samples=300) == [100, 200, 300], "once a step, however often crossed"


@pytest.mark.parametrize("text", ["", "0", " 0 ", "0 steps", "0 minutes", "15 minutes", "1 minute"])
def test_zero_nothing_and_minutes_are_not_due_by_samples(text):
    assert due(text) == []


def test_minutes_are_read():
    minutes = [Cadence.parse(text, "").minutes for text in ("15 minutes", "0.5 minutes", "3 steps")]
    assert minutes == [15, 0.5, 0]


@pytest.mark.parametrize("text", ["often", "-5", "-5 steps", "5 hours", "1.2.3 minutes", "%"])
def test_other_texts_are_refused_with_examples(text):
    with pytest.raises(UserError, match=r'save_every is .*Write it as "1000 steps"'):
        replace(toy(), save_every=text)


def test_validation_by_the_clock_is_refused():
    with pytest.raises(UserError, match=r"validate_every is '5 minutes': by the clock"):
        replace(toy(), validate_every="5 minutes")
