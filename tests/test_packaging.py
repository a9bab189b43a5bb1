"""What is installed: every package, under the name `unclip` alone, with its weights."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = SETTINGS["tool"]["setuptools"]
SOURCE_FOLDERS = SETUPTOOLS["package-dir"]  # package name -> folder
PROBE = "unclip/weights/probe/decoder/model.safetensors"


def package_folder(package: str) -> Path:
    """The folder of a package, by the longest entry of package-dir that it begins with."""
    owner = max((name for name in SOURCE_FOLDERS if f"{package}.".startswith(f"{name}.")), key=len)
    return ROOT / SOURCE_FOLDERS[owner] / package.removeprefix(owner).lstrip(".").replace(".", "/")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built without network, from a copy, so that the work tree stays as it is."""
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy)
    for name in SOURCE_FOLDERS.values():
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    weights = copy / PROBE
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"a model's weights, as deep as they lie in a pipeline folder")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(out.glob("*.whl"))


def test_every_package_is_listed() -> None:
    listed = {package_folder(package) for package in SETUPTOOLS["packages"]}
    found = {init.parent for top in SOURCE_FOLDERS.values() for init in (ROOT / top).rglob("__init__.py")}
    assert found == listed


def test_every_module_is_in_a_package() -> None:
    modules = {path for top in SOURCE_FOLDERS.values() for path in (ROOT / top).rglob("*.py")}
    assert not [path for path in modules if not (path.parent / "__init__.py").exists()]


def test_what_is_imported_is_declared() -> None:
    names = {
        "PIL": "pillow",
        "open_clip": "open_clip_torch",
        "resvg_py": "resvg-py",
        "yaml": "pyyaml",
    }  # import -> distribution
    lists = [SETTINGS["project"]["dependencies"], *SETTINGS["project"]["optional-dependencies"].values()]
    declared = {re.split(r"[<>=~ ]", entry)[0] for entries in lists for entry in entries}
    imported = set()
    for path in (path for top in SOURCE_FOLDERS.values() for path in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    foreign = imported - sys.stdlib_module_names - {"unclip", "_typeshed"}
    assert {names.get(name, name) for name in foreign} <= declared


def test_wheel_holds_unclip_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"unclip"}
    modules = [path for package in SETUPTOOLS["packages"] for path in package_folder(package).glob("*.py")]
    assert len([name for name in names if name.endswith(".py")]) == len(modules)


def test_wheel_holds_the_weights(wheel: Path) -> None:
    weights = ROOT / "unclip" / "weights"
    here = {
        f"unclip/weights/{path.relative_to(weights).as_posix()}"
        for path in weights.rglob("*")
        if path.is_file()
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"unclip/py.typed", "unclip/clip/paraphrases.json", "unclip/eval/gallery.json"} <= names
    assert "unclip/weights/emoji/model_index.json" in here
    assert here | {PROBE} <= names


def test_wheel_imports_from_elsewhere(wheel: Path, tmp_path: Path) -> None:
    unpacked, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(unpacked)
    code = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
import unclip.pipelines, unclip.train.tasks
print(unclip.__file__, unclip.pipelines.__file__, unclip.train.tasks.__file__, sep="\\n")
"""
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [Path(line).relative_to(unpacked).as_posix() for line in run.stdout.split()] == [
        "unclip/__init__.py",
        "unclip/pipelines/__init__.py",
        "unclip/train/tasks/__init__.py",
    ]
