"""The rules of the house, kept by the code itself."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vlp.spec import names

ROOT = Path(__file__).parents[1]
FLOORS = ("vlp", "data_pipelines", "eval", "training")
FILES = [
    path.relative_to(ROOT) for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))
]
FAMILIES = {
    "training.losses": ("local", "world", "rows", "scale", "bias"),
    "eval.evaluators": ("encode", "encoded"),
    "data_pipelines.negatives": ("caption", "rng"),
}
DOORS = {
    "webdataset": ("data_pipelines/shards.py",),
    "tarfile": ("data_pipelines/tar_index.py",),
    "fsspec": ("data_pipelines/fetch.py",),
    "simplejpeg": ("data_pipelines/decode.py",),
    "open_clip": ("vlp/encoder.py", "vlp/tokenizer.py", "vlp/weights.py", "vlp/exports/"),
    "timm": (
        "vlp/weights.py",
        "training/optimization/layers.py",
        "training/optimization/optimizers.py",
    ),
    "transformers": ("vlp/encoder.py", "vlp/exports/transformers_folder.py"),
    "onnxscript": ("vlp/exports/onnx_files.py",),
    "datasets": ("eval/datasets/hugging_face.py",),
    "faiss": ("vlp/index/",),
    "accelerate": ("training/",),
    "fasttext": ("data_pipelines/filters/language.py",),
    "pdqhash": ("data_pipelines/curation/pdq.py",),
    "spacy": ("data_pipelines/curation/syntax.py",),
    "rapidocr": ("data_pipelines/curation/ocr.py",),
    "ahocorasick": ("data_pipelines/filters/metaclip_balance.py",),
    "ray": ("data_pipelines/engine.py",),
    "fastapi": ("vlp/serve/",),
    "starlette": ("vlp/serve/",),
    "uvicorn": ("vlp/serve/",),
    "prometheus_client": ("vlp/serve/",),
    "tyro": ("vlp/cli.py", "commands.py"),
}


def imports(path: Path) -> list[tuple[int, str]]:
    """Return (line, module) of every import of a file, those inside functions included."""
    found = []
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: write imports from the top"
            found.append((node.lineno, node.module or ""))
    return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path):
    allowed = FLOORS[: FLOORS.index(path.parts[0]) + 1]
    for line, module in imports(path):
        floor = module.split(".")[0]
        assert floor not in FLOORS or floor in allowed, f"{path}:{line} imports {floor}"
        assert floor != "tests", f"{path}:{line} imports tests"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_an_outside_library_has_one_door(path):
    for line, module in imports(path):
        doors = DOORS.get(module.split(".")[0])
        here = path.as_posix()
        assert doors is None or any(here.startswith(d) or here.endswith(d) for d in doors), (
            f"{path}:{line} imports {module}; its door is {doors}"
        )


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_and_functions_stay_small(path):
    text = (ROOT / path).read_text()
    assert text.count("\n") <= 400, f"{path} has {text.count(chr(10))} lines: redesign it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{path}:{node.lineno} {node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_tree_in_the_readme_names_every_file(path):
    if path.name != "__init__.py":
        readme = (ROOT / "README.md").read_text()
        assert re.search(rf"(?m)^\s+{re.escape(path.name)}\s", readme), f"{path} is not in the tree"


def test_the_tree_in_the_readme_names_only_files_that_are_there():
    tree = (ROOT / "README.md").read_text().partition("```tree\n")[2].partition("```")[0]
    found = {path.name for path in FILES}
    named = re.findall(r"(?m)^\s+(\w+\.py)\s", tree)
    assert named
    assert set(named) <= found


@pytest.mark.parametrize(
    "part", [f"{family}.{name}" for family in FAMILIES for name in names(family)]
)
def test_a_part_is_a_class_named_as_its_file_with_the_one_method_of_its_kind(part):
    family, _, name = part.rpartition(".")
    class_name = "".join(word.title() for word in name.split("_"))
    found = getattr(importlib.import_module(part), class_name, None)
    assert found, f"{part} defines no class {class_name}"
    takes = tuple(inspect.signature(found.__call__).parameters)[1:]
    assert takes == FAMILIES[family]


def test_tests_are_no_package():
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_help_loads_no_heavy_library_and_names_every_command():
    code = "import sys, vlp.cli; vlp.cli.main(['--help']); print('MODULES', *sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    heavy = {"torch", "open_clip", "transformers", "faiss", "accelerate", "pyarrow"}
    assert not heavy & set(said.partition("MODULES")[2].split())
    for command in re.findall(r"(?m)^`?vlp (\w+)", (ROOT / "README.md").read_text()):
        assert f"\n  {command} " in said
