"""Groups of options, as typer sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer

from conviction.cli.groups import grouped


@dataclass(frozen=True)
class Where:
    """A group."""

    room: str
    shelf: Annotated[int, typer.Option("-s", "--shelf")] = 2


def test_a_groups_fields_are_options_in_its_place():
    seen = []

    def find(book: str, *, where: Where, loudly: bool = False) -> None:
        """Find a book."""
        seen.append((book, where, loudly))

    app = typer.Typer()
    app.command()(grouped(find))
    command = typer.main.get_command(app)
    assert [p.name for p in command.params][:4] == ["book", "room", "shelf", "loudly"]
    assert (command.name, command.help) == ("find", "Find a book.")
    command.main(["Emma", "cellar"], standalone_mode=False)
    command.main(["Emma", "attic", "-s", "3", "--loudly"], standalone_mode=False)
    assert seen == [("Emma", Where("cellar", 2), False), ("Emma", Where("attic", 3), True)]


def test_two_options_of_one_name_are_refused():
    def find(room: str, where: Where) -> None: ...

    with pytest.raises(ValueError, match="duplicate parameter name: 'room'"):
        grouped(find)
