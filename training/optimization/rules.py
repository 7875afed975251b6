"""What is written about parts of the encoder: rules for its parameters, and the stages of a run."""

import math
from dataclasses import dataclass

from training.duration import Duration
from vlp.errors import UserError, nearest

RULE = '"visual.*: lr=0.1 decay=0" or "text.token_embedding: freeze"'
STAGE = '"50%: freeze=visual", "20%: lr=0.1 warmup=2%" or, for what is left, "rest"'


@dataclass(frozen=True, kw_only=True)
class GroupRule:
    """How the parameters that a pattern names are trained; what is None stays as it was."""

    pattern: str
    """A name with ``*`` or ``[0-5]`` as in a shell, a module of that name, or layers of a tower."""
    rate: float | None = None
    """Factor on the learning rate."""
    decay: float | None = None
    """Factor on the weight decay of those that decay."""
    layer_decay: float | None = None
    """Factor on the learning rate from each layer of the tower to the one before."""
    is_frozen: bool = False
    """Whether they are not trained at all."""

    @classmethod
    def parse(cls, text: str) -> "GroupRule":
        """Return the rule of ``"PATTERN: lr=0.1 decay=0 layer-decay=0.75"`` or ``"...: freeze"``.

        Raises:
            UserError: It is no such text.
        """
        pattern, rest = _at_colon(text)
        options = _options(rest, ("lr", "decay", "layer-decay", "freeze"), text)
        if not pattern.strip() or not options:
            raise UserError(f"Cannot read the group {text!r}. Write it as {RULE}.")
        if options.get("freeze", ""):
            raise UserError(f"Cannot read the group {text!r}: freeze takes no value.")
        return cls(
            pattern=pattern.strip(),
            rate=_factor(options, "lr", text),
            decay=_factor(options, "decay", text),
            layer_decay=_factor(options, "layer-decay", text),
            is_frozen="freeze" in options,
        )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a run, after the part before it."""

    length: Duration | None
    """None: the rest of the run."""
    freeze: tuple[str, ...] = ()
    """Patterns of what is not trained meanwhile, beside what the whole run freezes."""
    rate: float = 1.0
    """Factor on the learning rate of the whole run's schedule."""
    warmup: Duration = Duration(0, "%")  # noqa: RUF009  frozen
    """A linear rise from 0 at the start of the stage, beside the run's own."""
    image_size: int | None = None
    """Side of the pictures in pixels; None: the image tower's own."""

    @classmethod
    def parse(cls, text: str) -> "Stage":
        """Return the stage of ``"50%: freeze=visual lr=0.5 warmup=2%"``, ``"50%"`` or ``"rest"``.

        Raises:
            UserError: It is no such text.
        """
        length, _, rest = text.partition(":")
        options = _options(rest, ("freeze", "lr", "warmup", "size"), text)
        factor = _factor(options, "lr", text)
        freeze = options.get("freeze", "").replace(",", " ").split()
        if "freeze" in options and not freeze:
            raise UserError(f"Cannot read the stage {text!r}: write what it freezes, as {STAGE}.")
        size = options.get("size")
        if size is not None and not (size.isdecimal() and int(size)):
            raise UserError(f"Cannot read the stage {text!r}: size is a number of pixels.")
        is_rest = length.strip() == "rest"
        return cls(
            length=None if is_rest else Duration.parse(length, f"The length of stage {text!r}"),
            freeze=tuple(freeze),
            rate=1.0 if factor is None else factor,
            warmup=Duration.parse(options.get("warmup", "0%"), f"The warm-up of stage {text!r}"),
            image_size=int(size) if size else None,
        )


def parse_stages(texts: tuple[str, ...]) -> tuple[Stage, ...]:
    """Return the stages of a run; without texts, one that lasts the whole run.

    Raises:
        UserError: A text is no stage, one before the last is the rest, or percents are not 100.
    """
    stages = tuple(Stage.parse(text) for text in texts or ("rest",))
    if any(stage.length is None for stage in stages[:-1]):
        raise UserError('Only the last of the stages can be the "rest".')
    lengths = [stage.length for stage in stages if stage.length]
    total = sum(length.amount for length in lengths)
    is_share = all(length.unit == "%" for length in lengths) and stages[-1].length is not None
    if is_share and not math.isclose(total, 100):
        raise UserError(
            f'The stages are {total:g}% of the run. Write "rest" as the last\'s length.'
        )
    return stages


def _at_colon(text: str) -> tuple[str, str]:
    """Split at the first colon outside of brackets: ``visual[:-2]: freeze``."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if letter == ":" and not depth:
            return text[:place], text[place + 1 :]
    return text, ""


def _options(text: str, known: tuple[str, ...], whole: str) -> dict[str, str]:
    """Return what ``"lr=0.5 warmup=100 steps freeze"`` sets; a value may hold spaces."""
    options: dict[str, str] = {}
    key = ""
    for word in text.split():
        name, equals, value = word.partition("=")
        if equals or word in known:
            key = name.replace("_", "-")
            if key not in known:
                raise UserError(f"Cannot read {whole!r}: no {name}. {nearest(name, known)}")
            options[key] = value
        elif key:
            options[key] += f" {word}"
        else:
            raise UserError(f"Cannot read {whole!r} at {word!r}. {nearest(word, known)}")
    return options


def _factor(options: dict[str, str], key: str, whole: str) -> float | None:
    if key not in options:
        return None
    try:
        factor = float(options[key])
    except ValueError:
        factor = math.nan
    if not 0 <= factor < math.inf:
        raise UserError(f"Cannot read {whole!r}: {key} is a factor from 0, such as {key}=0.5.")
    return factor
