"""The ``vlp`` command: opens the door of each folder, its ``commands.py``.

A public function of a ``commands.py`` is a sub-command: its signature is its options and its
docstring is its help (``filter_`` is ``vlp filter``). The folders are named as text and no door
loads torch, so imports run one way and ``vlp --help`` answers at once.
"""

import contextlib
import functools
import importlib
import inspect
import io
import json
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any, get_type_hints

from vlp.console import Voice, speaking
from vlp.errors import NO_ROOM, Stopped, UserError, nearest, said_by_first_process

DOORS = ("data_pipelines", "training", "eval", "vlp")
ORDER = (
    *("quickstart", "inspect", "pack", "filter", "train", "eval"),
    *("export", "embed", "index", "search", "classify", "serve"),
)


def commands() -> dict[str, Callable]:
    """Return every public function of every door, by its name on the command line."""
    found = {}
    for door in DOORS:
        module = importlib.import_module(f"{door}.commands")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                found[name.rstrip("_").replace("_", "-")] = function
    rank = {name: place for place, name in enumerate(ORDER)}
    return dict(sorted(found.items(), key=lambda item: rank.get(item[0], len(rank))))


def main(argv: list[str] | None = None) -> None:
    """Run one command, such as ``vlp train toy --data.shards shards --out run``; exit as one."""
    try:
        run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"vlp: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `vlp ... | head` closed our output
        sys.exit(1)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"vlp: {error}. Make room and run the same command again.", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        if str(stopped):
            print(f"vlp: {stopped}", file=sys.stderr)
        sys.exit(128 + stopped.number)
    except KeyboardInterrupt:
        print("vlp: stopped. Run the same command again to go on.", file=sys.stderr)
        sys.exit(130)


def run(argv: list[str]) -> Any:
    """Run one command and return its result: plain data, the same that ``--json`` prints.

    Raises:
        UserError: Anything that the user can mend.
    """
    voice: Voice | None = "json" if "--json" in argv else "quiet" if "--quiet" in argv else None
    argv = [word for word in argv if word not in ("--json", "--quiet")]
    if not argv or argv[0] in ("--help", "-h"):
        print(_overview())
        return None
    if argv[0] in ("--version", "-V"):
        print(f"vlp {version('vlp')}")
        return None
    with said_by_first_process():
        command = parse(argv)
    with speaking(voice):
        result = command()
    if voice == "json" and result is not None:
        print(json.dumps(result, indent=1, default=str, ensure_ascii=False))
    return result


def parse(argv: list[str]) -> Callable[[], Any]:
    """Return the command that a line names, with its arguments and options.

    Raises:
        UserError: There is no such command or option.
    """
    known = commands()
    if argv[0] not in known:
        raise UserError(f"There is no command {argv[0]!r}. {nearest(argv[0], known)}")
    if argv[0] == "train" and not {"--help", "-h"} & set(argv):
        _check_recipe(argv)
    arguments, options = _arguments(known[argv[0]], argv)
    return functools.partial(known[argv[0]], *arguments, **options)


def _arguments(command: Callable, argv: list[str]) -> tuple[tuple, dict[str, Any]]:
    """Return what a command is called with; a wrong option becomes one line."""
    import tyro

    keep: Any = lambda *arguments, **options: (arguments, options)  # noqa: E731
    hints = get_type_hints(command, include_extras=True)
    parameters = [
        _named(p.replace(annotation=hints[p.name]))
        for p in inspect.signature(command).parameters.values()
    ]
    keep.__signature__ = inspect.Signature(parameters)
    keep.__annotations__ = {p.name: p.annotation for p in parameters}
    keep.__doc__, keep.__name__ = command.__doc__, command.__name__
    said = io.StringIO()
    styles = (tyro.conf.CascadeSubcommandArgs, tyro.conf.FlagCreatePairsOff)
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(keep, prog=f"vlp {argv[0]}", args=argv[1:], config=styles)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{_one_line(said.getvalue())} See `vlp {argv[0]} --help`.") from None


def _check_recipe(argv: list[str]) -> None:
    """Raise UserError unless a recipe comes first: tyro would speak of sub-commands."""
    recipes = importlib.import_module("training.commands").RECIPES
    if len(argv) < 2 or argv[1].startswith("-"):
        raise UserError(
            f"Write a recipe first, as `vlp train toy --out run`. {nearest('', recipes)}"
        )
    if argv[1] not in recipes:
        raise UserError(f"There is no recipe {argv[1]!r}. {nearest(argv[1], recipes)}")


def _named(parameter: inspect.Parameter) -> inspect.Parameter:
    """Let the help call a positional by its name, as ``INDEX``, and not by its type."""
    import tyro

    if parameter.kind is not inspect.Parameter.POSITIONAL_ONLY:
        return parameter
    name = tyro.conf.arg(metavar=parameter.name.upper())
    return parameter.replace(annotation=Annotated[parameter.annotation, name])


def _one_line(message: str) -> str:
    """Return what tyro says in a box, with its suggestions, as one line."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", message)
    lines = [line.strip("│ ") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    first, *rest = re.split(r"[─-]{20,}", "\n".join(lines))
    if "╭" not in text:  # without Unicode there is no box: a title stands over a rule
        first, *rest = rest
    first = first.strip()
    options = re.findall(r"^--[a-z]\S*", "\n".join([first, *rest]), re.MULTILINE)
    if first.startswith("Missing"):
        missing = options or re.findall(r"^[A-Z_]+$", first, re.MULTILINE)
        return f"Missing: {', '.join(missing) or ' '.join(first.split()[1:]).rstrip('.')}."
    said = " ".join(first.partition("Got errors")[0].split()).rstrip(".")
    if "Perhaps you meant" in message:
        return f"{said}. Did you mean {' or '.join(dict.fromkeys(options))}?"
    known = re.search(r"Available subcommands:.*", "\n".join(rest))
    return f"{said}. {known[0]}." if known else f"{said}."


def _overview() -> str:
    known = commands()
    width = max(map(len, known))
    lines = [
        f"  {name:<{width}}  {(inspect.getdoc(function) or '').splitlines()[0]}"
        for name, function in known.items()
    ]
    return "\n".join(
        [
            "usage: vlp COMMAND [OPTIONS] [--quiet] [--json]",
            "",
            "Pretrain CLIP-style vision-language models and put them to use.",
            "",
            *lines,
            "",
            "`vlp COMMAND --help` explains one; `vlp quickstart` shows them all at work.",
        ]
    )
