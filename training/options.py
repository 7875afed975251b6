"""The groups of options of a run: plain frozen data, checked when it is made."""

import math
from dataclasses import dataclass, field
from typing import Literal

from data_pipelines.augment import Augmentation
from data_pipelines.captions import CaptionChoice, Group
from data_pipelines.plan import LANES
from training.cadence import Cadence
from training.curriculum import Curriculum
from training.duration import Duration
from training.optimization.rules import GroupRule
from vlp.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from and how they are batched."""

    shards: tuple[str, ...] = ()
    """Training shards: folders, tar files, globs, brace ranges, URLs or ``pipe:`` commands."""
    weights: tuple[float, ...] = ()
    """Share of each source in what is read; none: all samples are one pool."""
    keep: tuple[str, ...] = ()
    """Keep-lists of `vlp filter --keep-list`, or DataComp's ``.npy`` of uids, one for each of the
    shards: which samples are read, and how often in an epoch."""
    resample: bool = False
    """Draw shards with replacement: nothing is counted first, and there are no epochs."""
    validation: str | None = None
    """Shards for the validation loss and retrieval."""
    batch_size: int = 256
    """Pairs in a step over all processes."""
    captions: str = "txt"
    """Where captions come from: ``txt`` or fields of ``.json``, by weight
    (``"txt:0.7 keywords:0.3"``) or priority (``"recap>alt>txt"``); one is drawn at each read."""
    group: Group = "caption"
    """What makes two pairs of a batch match: an equal caption, class or image; none: only a pair
    itself."""
    label_key: str = "cls"
    """Field of ``.json`` that holds the class, for ``--data.group label``."""
    workers: int = 2
    """Processes that read and decode, for each training process; 0: none of their own."""
    lanes: int = LANES
    """Places in the data that are read side by side. More mix better; a stream keeps a few shards
    open for each, and serves at most as many processes times workers without reading twice."""
    scaled_decode: bool = False
    """Decode large JPEGs at 1/2, 1/4 or 1/8 of their size: faster, not quite the same pixels."""
    max_bad: float = 0.05
    """Share of bad samples above which the run stops."""
    mined: str | None = None
    """What `vlp mine` wrote of the shards: a share of each batch is then alike, and false negatives
    never meet in one. None: batches are drawn from all samples."""
    hard: str = "0.5"
    """Share of a batch that is from one mined cluster, or seeds with their neighbours; or how it
    changes from the start of the run, as ``"0 -> 0.5 over 20%"``."""
    remine: str = "0"
    """How often the plan is mined again, of the training set as the encoder then sees it, as
    ``"1000000 samples"`` or ``"1 epochs"``; 0: never. The options are those of ``mined``."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """What is changed about training pictures."""
    image_views: int = 1
    """Crops of each picture, for losses that take more than one."""
    text_views: int = 1
    """Captions drawn for each pair, for losses that take more than one."""

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise UserError(
                f"The batch size is {self.batch_size}; a contrastive loss needs at least 2 pairs."
            )
        least = {"workers": 0, "lanes": 1, "image_views": 1, "text_views": 1}
        check_least(self, least, prefix="data.")
        is_fitting = len(self.weights) in (0, len(self.shards))
        if not is_fitting or not all(0 < weight < math.inf for weight in self.weights):
            raise UserError(
                f"The weights are {self.weights} for {len(self.shards)} sources. Write a number "
                f"above 0 for each of --data.shards."
            )
        if self.keep and (self.resample or len(self.keep) != len(self.shards)):
            raise UserError(
                "Keep-lists do not go with --data.resample."
                if self.resample
                else f"There are {len(self.keep)} keep-lists for {len(self.shards)} sources. Write "
                f"one after --data.keep for each of --data.shards."
            )
        self._check_mined()
        if not 0 <= self.max_bad <= 1:
            raise UserError(f"data.max-bad is {self.max_bad}. Write a share from 0 to 1.")
        CaptionChoice.parse(self.captions)

    def _check_mined(self) -> None:
        Curriculum.parse(self.hard, "data.hard")
        again = Cadence.parse(self.remine, "data.remine")
        if again.minutes:
            raise UserError(
                f"data.remine is {self.remine!r}: by the clock, two equal runs would be mined at "
                f'other steps. Write it in "1000000 samples" or "1 epochs".'
            )
        is_asked = self.hard != "0.5" or again.duration.amount
        if self.mined is None and is_asked:
            flag = "remine" if again.duration.amount else "hard"
            raise UserError(
                f"--data.{flag} is about mined batches. Write --data.mined FOLDER, too, with what "
                f"`vlp mine` wrote."
            )
        if self.mined is not None and (self.resample or self.weights):
            flag = "resample" if self.resample else "weights"
            raise UserError(
                f"Mined batches are of one pool of counted samples: they do not go with "
                f"--data.{flag}. Leave it out."
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The two towers, and the weights that they start from."""

    name: str = "ViT-B-32"
    """Architecture: ``tiny``, open_clip's ``ViT-B-32``, a JSON file, ``hf-hub:org/repo``,
    ``local-dir:path``; or a run or checkpoint folder to fine-tune."""
    weights: str | None = None
    """Weights of both towers: an open_clip tag such as ``laion2b_s34b_b79k``, or a file."""
    image_weights: str | None = None
    """Weights of the image tower: ``timm`` for timm's own, or a file."""
    text_weights: str | None = None
    """Weights of the text tower: ``hf`` for Hugging Face's own, or a file."""
    image_size: int | None = None
    """Side of the pictures in pixels; position embeddings are resized."""
    context_length: int | None = None
    """Tokens per caption; position embeddings are resized."""
    patch_dropout: float | None = None
    """Share of a picture's patches left out in training, as in FLIP, such as 0.5: those of a
    picture follow from its seed. None: the architecture's own, mostly 0."""

    def __post_init__(self) -> None:
        if self.patch_dropout is not None and not 0 <= self.patch_dropout < 1:
            raise UserError(f"model.patch-dropout is {self.patch_dropout}. Write 0 up to below 1.")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Which optimizer takes the steps, how large they are, and what they move."""

    name: str = "adamw"
    """``adamw``, ``stable_adamw``, or one of timm's: ``lamb``, ``lion`` (use a third to a tenth of
    AdamW's rate and as much more decay), ``"adopt(caution=True)"``."""
    learning_rate: float = 5e-4
    """Peak, reached after the warm-up."""
    schedule: Literal["cosine", "linear", "constant", "reciprocal_sqrt"] = "cosine"
    """After the warm-up: down to 0 along half a cosine or a line; as it is; or with the reciprocal
    square root of the samples seen. The last two do not depend on the run's length until they cool
    down."""
    warmup: str = "5%"
    """Linear rise from 0, such as ``"2000 steps"``, ``"1000000 samples"``, ``"1 epochs"``, ``"5%"``
    of the run."""
    cooldown: str = "0%"
    """Linear fall to 0 at the end, of a constant or reciprocal square root."""
    timescale: str | None = None
    """Of the reciprocal square root: so far behind the warm-up, the rate is the peak over the root
    of 2; none: the length of the warm-up."""
    weight_decay: float = 0.2
    """Not applied to norms, biases, scale and bias."""
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; 0 leaves it as it is."""
    layer_decay: float = 1.0
    """Factor on the rate from each layer of a tower to the one before; its last layer has 1."""
    groups: tuple[str, ...] = ()
    """Rules for parameters by name: ``"visual.*: lr=0.1 decay=0"`` (factors on the learning rate
    and weight decay), ``"text: layer-decay=0.9"``, ``"text.transformer.resblocks.[0-5]: freeze"``.
    A module's name stands for all in it, ``visual[:-2]`` for all layers of the tower but the last
    two; of several rules that name a parameter, the last decides."""

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"The learning rate is {self.learning_rate}. Write one above 0.")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"The layer decay is {self.layer_decay}. Write one up to 1, as 0.75.")
        _, cooldown, timescale = self.durations()
        if cooldown.amount and self.schedule in ("cosine", "linear"):
            raise UserError(
                f"A {self.schedule} falls to 0 by itself. Leave out --optimizer.cooldown, or write "
                f"--optimizer.schedule constant."
            )
        if self.schedule == "reciprocal_sqrt" and not timescale.amount:
            raise UserError(
                "A reciprocal square root has a time scale. Write --optimizer.timescale "
                '"10000 steps", or a warm-up above 0.'
            )
        for rule in self.groups:
            GroupRule.parse(rule)

    def durations(self) -> tuple[Duration, Duration, Duration]:
        """Return the warm-up, the cool-down and the time scale."""
        return (
            Duration.parse(self.warmup, "The warm-up"),
            Duration.parse(self.cooldown, "The cool-down"),
            Duration.parse(self.timescale or self.warmup, "The time scale"),
        )


@dataclass(frozen=True, kw_only=True)
class KeepConfig:
    """Which checkpoints of a run stay: the last ones, and of the older those named here."""

    last: int = 2
    """The newest that stay; one of them may be damaged."""
    every: int = 0
    """Those of every so many steps stay for good; 0: none."""
    best: str = ""
    """The one with the best value of this figure stays, such as
    ``validation/retrieval/image_to_text/recall@1``; of a loss or rank the lowest is the best."""

    def __post_init__(self) -> None:
        for name, least in (("last", 1), ("every", 0)):
            if getattr(self, name) < least:
                raise UserError(f"keep.{name} is {getattr(self, name)}. Write {least} or more.")


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What a run does about steps that would harm it."""

    patience: int = 10
    """Steps in a row that are left out, as their loss or gradient is not finite, before the run
    stops."""
    spike: float = 10.0
    """A loss or gradient norm so many deviations above its median is a spike; 0 looks for none."""
    window: int = 128
    """Steps that the median and the deviations are those of; judged from half of them on."""
    on_spike: Literal["note", "skip", "rewind"] = "note"
    """``note`` says so; ``skip`` leaves the step out; ``rewind`` goes back to the newest checkpoint
    from before the spike, and on with the data behind it."""
    rewinds: int = 3
    """Times that the run goes back to the same checkpoint before it stops."""

    def __post_init__(self) -> None:
        check_least(self, {"patience": 1, "window": 8, "rewinds": 1}, prefix="guard.")
        if not 0 <= self.spike < math.inf:
            raise UserError(f"guard.spike is {self.spike}. Write a number such as 10, or 0.")


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """What a step costs: the numbers stay the same, to rounding."""

    cut_captions: bool = True
    """Cut captions to the longest of a process's batch. Towers that read padding, as SigLIP's, get
    whole ones."""
    recompute: tuple[Literal["image", "text"], ...] = ()
    """Towers whose blocks are computed again in backward instead of kept (gradient checkpointing):
    ``image text`` needs far less memory, and a third more time."""
    compile: bool = False
    """Compile both towers (torch.compile): minutes at the start, then fewer and larger kernels."""
    profile: str | None = None
    """Steps to watch closely, such as ``100-110``: a trace for TensorBoard or ui.perfetto.dev in
    the run's folder, and a table of the operators that took longest."""

    def __post_init__(self) -> None:
        self.profiled()

    def profiled(self) -> range:
        """Return the steps to profile, counted from 1; none: an empty range."""
        if self.profile is None:
            return range(0)
        first, dash, last = self.profile.partition("-")
        if not (dash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise UserError(
                f"speed.profile is {self.profile!r}. Write the first and last step, as 100-110."
            )
        return range(int(first), int(last) + 1)


def check_least(config: object, least: dict[str, int], prefix: str = "") -> None:
    """Raise UserError where a number of the config is below the least that it may be."""
    for name, value in least.items():
        if getattr(config, name) < value:
            raise UserError(f"{prefix}{name} is {getattr(config, name)}. Write {value} or more.")
