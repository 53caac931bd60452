"""The wheel and the sdist hold what the program needs, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "conviction"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """(wheel, sdist), built without a network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def tracked() -> set[str]:
    """Files of the package, as they are on disk."""
    files = (p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {f"conviction/{p.relative_to(PACKAGE).as_posix()}" for p in files}


@pytest.mark.long
def test_the_wheel_holds_every_file_of_the_package(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = Parser().parsestr(
            wheel.read(next(n for n in wheel.namelist() if n.endswith("/METADATA"))).decode("utf-8")
        )
    assert names == tracked()
    assert {"conviction/py.typed", "conviction/__init__.pyi", "conviction/probing/neutral.txt"} <= names
    assert any(name.startswith("conviction/topics/obesity/documents/") for name in names)
    assert (metadata["Name"], metadata["Version"]) == ("conviction", "0.2.0")
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert {"rag", "track", "bench", "dev"} == set(metadata.get_all("Provides-Extra", []))


@pytest.mark.long
def test_the_sdist_holds_the_sources(built):
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {f"src/{name}" for name in tracked()} <= names
    assert {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"} <= names


def test_every_dependency_is_pinned_for_the_tested_environment():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    for line in wanted:
        name = line.split(">")[0].split("=")[0].split("[")[0].strip().lower().replace("_", "-")
        assert name in pins | {"conviction", "pip"}, f"{name} has no pin in constraints.txt"
