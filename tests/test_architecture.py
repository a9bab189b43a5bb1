"""The rules of the house that a machine can check: who may import whom, sizes, and no pickle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"unclip": "unclip", "pipelines": "unclip.pipelines", "train": "unclip.train"}

# Dependencies run one way: what each room (a folder or module of `unclip`) may import besides itself.
BASE = {"errors", "files"}
CORE = BASE | {"models", "clip", "diffusion"}
TOP = CORE | {"data", "eval", "pipelines", "train"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "diffusion": BASE,
    "models": BASE,
    "clip": BASE,
    "data": CORE,
    "eval": CORE | {"data"},
    "pipelines": CORE | {"data", "eval"},
    "train": CORE | {"data", "eval", "pipelines"},
    "cli": TOP,
}

# Third-party modules that a room may not import (a prefix of dotted names).
NETWORK_LIBRARIES = {
    "open_clip",
    "transformers",
    "timm",
    "torchvision",
    "diffusers.models",
    "diffusers.ModelMixin",
}
BANNED: dict[str, set[str]] = {
    "diffusion": NETWORK_LIBRARIES,  # probability and nothing else
    "models": {"open_clip", "diffusers.schedulers", "diffusers.guiders"},  # networks know no noise schedule
    "data": {"open_clip", "transformers.CLIP"},
    "eval": {"open_clip", "transformers.CLIP"},
    "pipelines": {"open_clip", "transformers.CLIP"},
    "train": {"open_clip", "transformers.CLIP"},
    "cli": {"open_clip", "transformers.CLIP"},
}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


@cache
def library() -> dict[str, ast.Module]:
    """Dotted name, as it is once installed -> syntax tree of every module of the library."""
    trees = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            trees[".".join((package, *inside))] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return trees


def imports(module: str, tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield (absolute dotted name, line) of all that a module imports, at its top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = ".".join(module.split(".")[: -node.level]) if node.level else ""
            source = ".".join(filter(None, (source, node.module)))
            yield from ((f"{source}.{alias.name}", node.lineno) for alias in node.names)


def room_of(module: str) -> str:
    """`unclip.train.tasks.prior` -> `train`; `unclip` itself -> ``."""
    return "".join(module.removesuffix(".__init__").split(".")[1:2])


def begins_with(name: str, prefixes: set[str]) -> bool:
    """Whether a name is a prefix or lies below one; `transformers.CLIP` covers transformers.CLIPModel."""
    return any(
        name == p or name.startswith(f"{p}.") or (p[-1].isupper() and name.startswith(p)) for p in prefixes
    )


def python_files() -> list[Path]:
    return [path for top in (*FOLDERS, "tests", "benchmarks") for path in sorted((ROOT / top).rglob("*.py"))]


def test_every_room_has_its_place() -> None:
    assert {room_of(module) for module in library()} - {"", "__main__"} <= ALLOWED.keys()


def test_dependencies_run_one_way() -> None:
    wrong = []
    for module, tree in library().items():
        # `cli.py` and `…_cli.py` of a room are part of the command line: their commands bring the rooms together.
        room = "cli" if module.endswith((".cli", "_cli")) else room_of(module)
        for name, line in imports(module, tree):
            target = room_of(name) if name.startswith("unclip.") else ""
            if room and target in ALLOWED and target != room and target not in ALLOWED[room]:
                wrong.append(f"{module}:{line} imports {name}: {room} may import {sorted(ALLOWED[room])}")
    assert not wrong, "\n".join(wrong)


def test_libraries_stay_in_their_rooms() -> None:
    wrong = [
        f"{module}:{line} imports {name}"
        for module, tree in library().items()
        for name, line in imports(module, tree)
        if begins_with(name, BANNED.get(room_of(module), set()))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_is_imported_by_its_folder_name() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in python_files()
        # A relative import is read as one from `here`, so what remains with these names is absolute.
        for name, line in imports("here.module", ast.parse(path.read_text(encoding="utf-8")))
        if begins_with(name, {"pipelines", "train"})
    ]
    assert not wrong, "\n".join(wrong)


def test_no_pickle() -> None:
    wrong = []
    for module, tree in library().items():
        wrong += [
            f"{module}:{line} imports {name}"
            for name, line in imports(module, tree)
            if begins_with(name, PICKLES)
        ]
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        wrong += [f"{module}:{call.lineno} {ast.unparse(call.func)}" for call in calls if may_unpickle(call)]
    assert not wrong, "\n".join(wrong)


def may_unpickle(call: ast.Call) -> bool:
    """torch.save; torch.load without weights_only=True; np.load with allow_pickle."""
    function = ast.unparse(call.func)
    given = {k.arg for k in call.keywords if isinstance(k.value, ast.Constant) and k.value.value is True}
    if function == "torch.load":
        return "weights_only" not in given
    return function == "torch.save" or (function in {"np.load", "numpy.load"} and "allow_pickle" in given)


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=False)", True),
        ("torch.load(path, weights_only=True)", False),
        ("np.load(path, allow_pickle=True)", True),
        ("np.load(path)", False),
    ],
)
def test_may_unpickle(source: str, wrong: bool) -> None:
    call = ast.parse(source, mode="eval").body
    assert isinstance(call, ast.Call)
    assert may_unpickle(call) is wrong


def test_files_fit_a_reader() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    assert not {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > MAX_FILE_LINES}


def test_functions_fit_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in python_files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not long, "\n".join(long)
