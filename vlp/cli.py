"""The ``vlp`` command: opens the door of each folder, its ``commands.py``.

A public function of a ``commands.py`` is a sub-command: its signature is its options and its
docstring is its help (``filter_`` is ``vlp filter``). The folders are named as text and no door
loads torch, so imports run one way and ``vlp --help`` answers at once.
"""

import contextlib
import importlib
import inspect
import io
import json
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from vlp.console import Voice, speaking
from vlp.errors import UserError, nearest

DOORS = ("data_pipelines", "training", "eval", "vlp")
ORDER = (
    *("quickstart", "inspect", "pack", "filter", "train", "eval"),
    *("embed", "index", "search", "classify"),
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


def main(argv: list[str] | None = None) -> Any:
    """Run one command, such as ``vlp train toy --data.shards shards --out run``.

    Returns:
        What the command returns: plain data, the same that ``--json`` prints.
    """
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"vlp: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `vlp ... | head` closed our output
        sys.exit(1)
    except KeyboardInterrupt:
        print("vlp: stopped. Run the same command again to go on.", file=sys.stderr)
        sys.exit(130)


def run(argv: list[str]) -> Any:
    """Run one command and return its result.

    Raises:
        UserError: Anything that the user can mend.
    """
    voice: Voice = "json" if "--json" in argv else "quiet" if "--quiet" in argv else "full"
    argv = [word for word in argv if word not in ("--json", "--quiet")]
    if not argv or argv[0] in ("--help", "-h"):
        print(_overview())
        return None
    if argv[0] in ("--version", "-V"):
        print(f"vlp {version('vlp')}")
        return None
    known = commands()
    if argv[0] not in known:
        raise UserError(f"There is no command {argv[0]!r}. {nearest(argv[0], known)}")
    with speaking(voice):
        result = _call(known[argv[0]], argv)
    if voice == "json":
        print(json.dumps(result, indent=1, default=str, ensure_ascii=False))
    return result


def _call(command: Callable, argv: list[str]) -> Any:
    """Parse the options and run the command; a wrong option becomes one line."""
    import tyro

    arguments: tuple = ()
    options: dict[str, Any] = {}

    def keep(*args: Any, **kwargs: Any) -> None:
        nonlocal arguments, options
        arguments, options = args, kwargs

    keep.__signature__ = inspect.signature(command)  # type: ignore[attr-defined]
    keep.__annotations__ = command.__annotations__
    keep.__doc__ = command.__doc__
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            tyro.cli(keep, prog=f"vlp {argv[0]}", args=argv[1:])
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(said.getvalue())) from None
    return command(*arguments, **options)


def _one_line(message: str) -> str:
    """Return tyro's boxed message as one line."""
    text = re.sub(r"\x1b\[[0-9;]*m|[╭╮╰╯─│]", " ", message)
    return re.sub(r"\s+", " ", text).strip()


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
