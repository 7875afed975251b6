"""Build a part from the text that names it: ``"caption_words(min=3)"``.

The folder is the registry. ``training/losses/sigmoid.py`` defines the class ``Sigmoid``, and its
name everywhere, on the command line and in a saved config, is the file's name, ``sigmoid``. So a
new loss, filter or evaluator is one new file. A dotted name, ``"my_package.focal(gamma=2)"``,
finds a file outside this repository in the same way.
"""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vlp.errors import UserError, nearest


def names(family: str) -> list[str]:
    """Return the names in a family, such as ``"training.losses"``, without importing them."""
    folder = importlib.import_module(family).__path__
    return sorted(file.name for file in pkgutil.iter_modules(folder))


def build(family: str, spec: str) -> Any:
    """Return the part of ``family`` that ``spec`` names, with the arguments it gives.

    Raises:
        UserError: The text is not ``name`` or ``name(key=value)``, no such part exists, or the
            part refuses the arguments.
    """
    return build_part(family, *parse(spec))


def build_part(family: str, name: str, arguments: Mapping[str, Any]) -> Any:
    """Return the part of ``family`` with this name, made with these arguments.

    Raises:
        UserError: No such part exists, or it refuses the arguments.
    """
    path = name if "." in name else f"{family}.{name}"
    if not _exists(path):
        kind = family.rsplit(".", 1)[-1].removesuffix("es" if family.endswith("sses") else "s")
        raise UserError(f"There is no {kind} called {name!r}. {nearest(name, names(family))}")
    class_name = "".join(word.title() for word in path.rsplit(".", 1)[-1].split("_"))
    part = getattr(importlib.import_module(path), class_name, None)
    if part is None:
        raise UserError(f"{path.replace('.', '/')}.py defines no class {class_name}.")
    written = _written(name, arguments)
    try:
        inspect.signature(part).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{written!r}: {error}. {_how_to_write(name, part)}") from None
    hints = get_type_hints(part)
    for argument, value in arguments.items():
        if argument in hints and not _fits(value, hints[argument]):
            raise UserError(
                f"{written!r}: {argument} cannot be {value!r}, a {type(value).__name__}. "
                f"{_how_to_write(name, part)}"
            )
    return part(**arguments)


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """Split ``"a.b(c=1)"`` into ``("a.b", {"c": 1})``; values are Python literals only.

    Raises:
        UserError: The text is not ``name`` or ``name(key=value)``.
    """
    try:
        node = ast.parse(spec.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        name = ast.unparse(call.func)
        if not all(word.isidentifier() for word in name.split(".")):
            raise ValueError("a name is words and dots, as in clip_score or my_package.my_loss")
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("give arguments by name, as in name(key=value)")
        return name, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise UserError(
            f"Cannot read {spec!r}: {error}. Write name or name(key=value), values as literals."
        ) from None


def _written(name: str, arguments: Mapping[str, Any]) -> str:
    values = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"{name}({values})" if values else name


def _how_to_write(name: str, part: Any) -> str:
    parameters = inspect.signature(part).parameters.values()
    options = ", ".join(
        p.name if p.default is inspect.Parameter.empty else f"{p.name}={p.default!r}"
        for p in parameters
    )
    return f"Write {name}({options})."


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a literal is of the type that a part says it takes."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple and inner[-1] is not Ellipsis:
        is_as_long = isinstance(value, tuple | list) and len(value) == len(inner)
        return is_as_long and all(map(_fits, value, inner))
    if origin in (tuple, list, Sequence):
        return isinstance(value, tuple | list) and all(_fits(v, inner[0]) for v in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return type(value) is int
    return isinstance(value, origin or hint)


def _exists(path: str) -> bool:
    try:
        return importlib.util.find_spec(path) is not None
    except ModuleNotFoundError:  # a folder on the way to the file is missing
        return False
