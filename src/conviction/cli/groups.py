"""Groups of options that several commands have: a dataclass, whose fields are the options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any

__all__ = ["grouped"]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer has to see it: in place of each parameter that is a group, the fields of the group.

    ::

        @dataclass(frozen=True)
        class LoadOptions:
            device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto"

        def probe(topic: str, *, load: LoadOptions) -> None: ...

        app.command()(grouped(probe))  # probe TOPIC --device cpu calls probe(topic=TOPIC, load=LoadOptions("cpu"))

    The options keep the order of the parameters and of the fields. Raises ValueError for two options of one name.
    """
    groups: dict[str, type[Any]] = {}
    options: list[Parameter] = []
    for parameter in signature(command, eval_str=True).parameters.values():
        group = parameter.annotation
        if isinstance(group, type) and is_dataclass(group):
            groups[parameter.name] = group
            options += signature(group, eval_str=True).parameters.values()
        else:
            options.append(parameter)

    @wraps(command)
    def call(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    # typer reads both. Keywords may follow one another in any order, with defaults and without.
    call.__dict__["__signature__"] = Signature([o.replace(kind=Parameter.KEYWORD_ONLY) for o in options])
    call.__annotations__ = {option.name: option.annotation for option in options}
    return call
