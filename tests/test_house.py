"""The house keeps its own rules."""

from __future__ import annotations

import ast
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
README = (ROOT / "README.md").read_text(encoding="utf-8")
SOURCES = sorted((ROOT / "src" / "conviction").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


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
            assert (node.end_lineno or 0) - node.lineno <= 61, f"{node.name} is too long to read in one sitting"
    for node in tree.body:
        public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        public = public and "overload" not in map(ast.unparse, node.decorator_list)  # the last one has it
        assert not public or ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_results_have_names_of_what_they_are(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    stored |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    assert not stored & {"found", "told", "said"}


def test_the_cause_tree_in_errors_names_every_error():
    from conviction import errors

    for name in errors.__all__:
        if isinstance(getattr(errors, name), type):
            assert name in (errors.__doc__ or "")


def _commands() -> dict[str, list[str]]:
    """Heading → the commands of its section of the README."""
    return {
        section.partition("\n")[0]: [line[2:] for line in "".join(blocks).splitlines() if line.startswith("$ ")]
        for section in README.split("\n## ")
        if (blocks := re.findall(r"```console\n(.*?)```", section, flags=re.DOTALL))
    }


def test_the_readme_names_only_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE)
    wanted = [c.split()[1] for commands in _commands().values() for c in commands if c.startswith("make ")]
    assert {"demo", "test"} <= set(wanted) <= set(targets)


def test_the_demo_is_a_command_that_exists():
    import typer

    from conviction.cli.app import app

    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (demo,) = re.findall(r"^\t.*/conviction (study .*?) (?=--run)", makefile, flags=re.MULTILINE)
    (options,) = re.findall(r"^DEMO := (.*)$", makefile, flags=re.MULTILINE)
    verb, *rest = shlex.split(demo.replace("$(DEMO)", options))
    assert typer.main.get_command(app).commands[verb].make_context(verb, rest)


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 150
    links = re.findall(r"\]\(([^)#]+)(#[^)]*)?\)", README)
    assert len(links) > 20
    for place, _ in links:
        assert (ROOT / place).is_file(), place


def test_the_readme_shows_every_verb():
    import typer

    from conviction.cli.app import app

    lists = {"models", "topics", "interventions", "rule"}
    table = README.partition("\n## Verbs\n")[2].partition("\n## ")[0]
    first_cells = "".join(re.findall(r"^\| (.+?) \|", table, flags=re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", first_cells)) == set(typer.main.get_command(app).commands) - lists


@pytest.mark.slow
@pytest.mark.usefixtures("shared_scores")
@pytest.mark.parametrize("section", [name for name, lines in _commands().items() if "conviction" in "".join(lines)])
def test_the_readmes_commands_run(section, run):
    for command in _commands()[section]:
        expected = int(command.partition("# exit ")[2] or 0)
        code, _, err = run(*shlex.split(command, comments=True)[1:])
        assert code == expected, f"{command}\n{err}"


@pytest.mark.slow
@pytest.mark.usefixtures("shared_scores")
def test_the_readmes_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})  # noqa: S102  our own README
