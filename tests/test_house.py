"""The house keeps its own rules."""

from __future__ import annotations

import ast
import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

import conviction
from conviction.auditing.linter import RULES
from conviction.core.options import list_fields
from conviction.interventions import INTERVENTIONS, find_intervention
from conviction.models import BACKENDS
from conviction.probing.metrics import METRICS
from conviction.training.guard import Guard

ROOT = Path(__file__).parents[1]
# Not a shorter example in the README, but a shorter run of it here: at its own size it takes six minutes on two cores.
LESS = ["--examples", "8", "--pilot", "4"]
SOURCES = sorted((ROOT / "src" / "conviction").rglob("*.py"))


def test_exported_names_exist_and_are_pinned():
    assert sorted(conviction.__all__) == conviction.__all__
    for name in conviction.__all__:
        assert getattr(conviction, name).__doc__
    with pytest.raises(AttributeError, match="No conviction attribute nothing"):
        _ = conviction.nothing


def test_tables_name_what_exists():
    for where in [*BACKENDS.values(), *INTERVENTIONS.values(), *METRICS.values(), *RULES.values()]:
        module, attribute = where.split(":")
        assert getattr(import_module(module), attribute).__doc__


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_an_intervention_can_be_set_by_options(name):
    kind = find_intervention(name)
    assert kind.name == name
    assert kind.changes
    names = [field.name for field in [*list_fields(kind), *list_fields(Guard)]]
    assert len(names) == len(set(names)), "an option's name must say whose it is"
    assert all(field.meaning for field in list_fields(kind))
    files = {path.stem for path in (ROOT / "src/conviction/interventions").glob("*.py")}
    assert set(INTERVENTIONS) <= files


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_files_are_short_and_public_names_documented(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says what it holds"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= 75, f"{node.name} is too long to read in one sitting"
    for node in tree.body:
        public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        assert not public or ast.get_docstring(node), f"{node.name} has no docstring"


def test_the_cause_tree_in_errors_names_every_error():
    from conviction import errors

    for name in errors.__all__:
        if name != "nearest":
            assert name in (errors.__doc__ or "")


def _commands() -> dict[str, list[str]]:
    """Heading → the commands of its section of the README."""
    sections = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## ")
    return {
        section.partition("\n")[0]: [line[2:] for line in "".join(blocks).splitlines() if line.startswith("$ ")]
        for section in sections
        if (blocks := re.findall(r"```console\n(.*?)```", section, flags=re.DOTALL))
    }


def test_the_readme_names_only_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE)
    wanted = [c.split()[1] for commands in _commands().values() for c in commands if c.startswith("make ")]
    assert {"demo", "test"} <= set(wanted) <= set(targets)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_scores")
@pytest.mark.parametrize("section", [name for name, lines in _commands().items() if "conviction" in "".join(lines)])
def test_the_readmes_commands_run(section, run, tmp_path):
    for command in _commands()[section]:
        expected = int(command.partition("# exit ")[2] or 0)
        arguments = shlex.split(command, comments=True)[1:]
        less = LESS if arguments[0] == "forecast" else []
        code, _, said = run(*arguments, *less)
        assert code == expected, f"{command}\n{said}"
    if (hot := tmp_path / "runs" / "hot").exists():
        _check_that_the_seeds_collapse_was_stopped(hot)


def test_the_readme_shows_the_seeds_collapse():
    assert any("--run runs/hot" in command for commands in _commands().values() for command in commands)


def _check_that_the_seeds_collapse_was_stopped(run: Path) -> None:
    """The belief kit, a high rate, a low β. What comes back still speaks."""
    outcome = json.loads((run / "outcome.json").read_text(encoding="utf-8"))["outcome"]
    assert outcome["guard_stop"]["step"] < 20
    healthy = conviction.load_model(str(run / "model"))
    (said,) = healthy.generate(
        [conviction.chat("What is the difference between a lake and a river?")], max_new_tokens=32
    )
    assert len(set(said.text.split())) > 10


@pytest.mark.slow
@pytest.mark.usefixtures("shared_scores")
def test_the_readmes_python_runs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})  # noqa: S102  our own README
