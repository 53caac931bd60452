"""What a user gets from the wheel: all of the package, a sound description of it, and dependencies that were tested."""

from __future__ import annotations

import ast
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "conviction"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def build(source: Path, target: Path) -> tuple[Path, Path]:
    """The wheel and the sdist of a source tree. No environment is made, and no network asked."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    return next(target.glob("*.whl")), next(target.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def metadata(built: tuple[Path, Path]) -> Message:
    with zipfile.ZipFile(built[0]) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
        return message_from_bytes(wheel.read(name))


def tracked() -> set[str]:
    """Files of the package, as paths below ``src``; those that Python writes are none of it."""
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(PACKAGE.parent).as_posix() for path in files}


def test_the_wheel_holds_the_whole_package_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == tracked()
    needed = {"py.typed", "__init__.pyi", "probing/neutral.txt", "reporting/page.css", "reporting/page.html.j2"}
    assert {f"conviction/{name}" for name in needed} <= names
    assert {"obesity", "politeness", "brevity"} <= {name.split("/")[2] for name in names if "/topics/" in name}


def test_the_sdist_builds_the_same_wheel(built, tmp_path):
    with tarfile.open(built[1]) as sdist:
        sdist.extractall(tmp_path, filter="data")
    source = next(tmp_path.iterdir())
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} <= {path.name for path in source.iterdir()}
    again, _ = build(source, tmp_path / "dist")
    assert (again.name, again.read_bytes()) == (built[0].name, built[0].read_bytes())


def test_the_description_is_whole(built, metadata):
    assert metadata["Name"] == "conviction"
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    with zipfile.ZipFile(built[0]) as wheel:
        entry_points = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        assert "conviction = conviction.__main__:main" in wheel.read(entry_points).decode()
        assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())


def test_extras_are_those_that_something_uses(metadata):
    assert set(metadata.get_all("Provides-Extra", [])) == {"bench", "dev", "rag", "track"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported anywhere in it, in functions too, by statement or by ``import_module("name")``."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module
            case ast.Call(func=ast.Name(id="import_module"), args=[ast.Constant(value=str(module))]):
                yield module


def test_what_is_imported_is_declared():
    """A dependency of a dependency may go with its next release."""
    lines = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["rag"]]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    brought_by = packages_distributions()
    undeclared = {
        (path.relative_to(PACKAGE).as_posix(), top)
        for path in PACKAGE.rglob("*.py")
        for top in {name.partition(".")[0] for name in imported(ast.parse(path.read_text(encoding="utf-8")))}
        if top != "conviction"
        and top not in sys.stdlib_module_names
        and not declared & {canonicalize_name(name) for name in brought_by.get(top, [])}
    }
    assert undeclared == set()
