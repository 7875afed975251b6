"""The schedule of a run: its learning rate and its stages, as functions of the samples seen."""

import math
from dataclasses import dataclass

from training.config import TrainConfig
from training.duration import RunLength
from training.optimization.rules import Stage, parse_stages
from training.options import OptimizerConfig
from vlp.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """A linear warm-up to the peak, a shape, a linear cool-down to 0; all lengths in samples."""

    shape: str
    """``cosine``, ``linear``, ``constant`` or ``reciprocal_sqrt``."""
    peak: float
    total: float
    batch_size: int
    warmup: float = 0.0
    cooldown: float = 0.0
    timescale: float = 1.0
    """Of the reciprocal square root: so far behind the warm-up, the rate is peak / sqrt(2)."""

    def rate(self, samples_seen: float) -> float:
        """Return the learning rate of the step that begins after this many samples.

        A warm-up counts the step's own samples, so that the first step is taken and the last of
        the warm-up has the peak; everything else counts those before the step, so that the last
        step of the run has a rate above 0 (both as in open_clip).
        """
        warm = _rise(samples_seen + self.batch_size, self.warmup)
        cool = _rise(self.total - samples_seen, self.cooldown)
        return self.peak * warm * self._factor(max(0.0, samples_seen - self.warmup)) * cool

    def _factor(self, since_peak: float) -> float:
        if self.shape == "constant":
            return 1.0
        if self.shape == "reciprocal_sqrt":  # Zhai et al. 2022, Scaling Vision Transformers, 3.5
            return 1 / math.sqrt(1 + since_peak / self.timescale)
        done = min(1.0, since_peak / max(1.0, self.total - self.warmup))
        return 1 - done if self.shape == "linear" else 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Schedule:
    """What is trained at which learning rate, as functions of the samples seen."""

    learning_rate: LearningRate
    stages: tuple[Stage, ...]
    starts: tuple[float, ...]
    """Samples seen before each stage."""
    warmups: tuple[float, ...]
    """Samples of each stage's own warm-up."""

    def stage_at(self, samples_seen: float) -> int:
        """Return the number of the stage of the step that begins after this many samples."""
        return sum(start <= samples_seen for start in self.starts) - 1

    def rate(self, samples_seen: float) -> float:
        """Return the learning rate of the step that begins after this many samples."""
        number = self.stage_at(samples_seen)
        inside = samples_seen + self.learning_rate.batch_size - self.starts[number]
        factor = self.stages[number].rate * _rise(inside, self.warmups[number])
        return factor * self.learning_rate.rate(samples_seen)

    def image_size(self, samples_seen: float) -> int | None:
        """Return the side of the pictures of that step; None: the image tower's own."""
        return self.stages[self.stage_at(samples_seen)].image_size

    def lines(self) -> list[str]:
        """Return it in words: the learning rate, then the stages where there are several."""
        plan, steps = self.learning_rate, self._steps
        said = f"Learning rate: {plan.shape.replace('_', ' ')} from {plan.peak:g}"
        if plan.warmup:
            said += f" after a warm-up of {steps(plan.warmup)} steps"
        if plan.cooldown:
            said += f", with a cool-down over the last {steps(plan.cooldown)} steps"
        if plan.warmup >= plan.total:
            said += ", which is longer than the run"
        told = []
        for start, stage in zip(self.starts, self.stages, strict=True):
            frozen = f"{' '.join(stage.freeze)} frozen" if stage.freeze else "nothing more frozen"
            size = f", pictures of {stage.image_size}" if stage.image_size else ""
            told.append(
                f"From step {steps(start)}: {frozen}, learning rate x {stage.rate:g}{size}."
            )
        return [f"{said}.", *(told if self.stages != (Stage(length=None),) else [])]

    def _steps(self, samples: float) -> str:
        return f"{math.ceil(samples / self.learning_rate.batch_size):,}"


def plan_schedule(config: TrainConfig, run: RunLength) -> Schedule:
    """Return the schedule and the stages of a run of this length.

    Raises:
        UserError: The stages are longer or shorter than the run, or count epochs of data that has
            none.
    """
    stages = parse_stages(config.stages)
    starts, end = [], 0.0
    for stage in stages:
        starts.append(end)
        end = stage.length.samples(run) + end if stage.length else max(end, run.samples)
    if starts[-1] >= run.samples or abs(end - run.samples) >= run.batch_size:
        raise UserError(
            f"The stages are {end:,.0f} samples long, the run {run.samples:,.0f}. Write "
            f'"rest" as the last one\'s length, and shorter ones before it.'
        )
    warmups = tuple(stage.warmup.samples(run) for stage in stages)
    return Schedule(plan_learning_rate(config.optimizer, run), stages, tuple(starts), warmups)


def plan_learning_rate(options: OptimizerConfig, run: RunLength) -> LearningRate:
    """Return the learning rate of a run of this length.

    Raises:
        UserError: A length is in epochs, and the data has none.
    """
    warmup, cooldown, timescale = (duration.samples(run) for duration in options.durations())
    return LearningRate(
        shape=options.schedule,
        peak=options.learning_rate,
        total=run.samples,
        batch_size=run.batch_size,
        warmup=warmup,
        cooldown=cooldown,
        timescale=timescale or 1.0,
    )


def _rise(samples: float, length: float) -> float:
    """Return how far a linear rise over ``length`` samples has come, in [0, 1]."""
    return min(1.0, max(0.0, samples) / length) if length else 1.0
