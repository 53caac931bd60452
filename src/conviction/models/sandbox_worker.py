"""The process that chat templates and patterns of strangers run in: it ends itself where they take too long.

It is started as a script by ``sandbox``, knows only the standard library and jinja2, and is spoken to in lines of
JSON. A single operation such as ``10**(10**9)`` or a pattern that backtracks for ever lets no Python code run beside
it, so the operating system keeps the time, that of the processor and not of a clock: a busy machine is not the
template's fault. Where it cannot (Windows), a thread of faulthandler's, which needs no Python, keeps that of a clock.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

MOST_CHARACTERS = 10_000_000
"""Of a rendered conversation."""

_SOURCES: dict[str, str] = {}


def render(*, template: str, source: str | None, variables: dict[str, Any]) -> str:
    """A conversation as a chat template writes it. source: of a template that is not known by its name yet."""
    if source is not None:
        _SOURCES[template] = source
    text: str = _compiled(_SOURCES[template]).render(**variables)
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it writes {len(text):,} characters, more than {MOST_CHARACTERS:,}")
    return text


def match(*, patterns: Sequence[str], names: Sequence[str]) -> int:
    """How many pairs of pattern and name match: all are tried, in each of the ways in which PEFT puts patterns."""
    ways = ("{}", r"(.*\.)?({})$", r"(^|.*\.){}($|\..*)", r"(?:^|.*?\.){}\.(?P<idx>\d+)\.")
    tried = [re.compile(way.replace("{}", pattern)) for pattern in patterns for way in ways]
    return sum(bool(one.fullmatch(name)) + bool(one.match(name)) for one in tried for name in names)


@lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    """A template in the environment that transformers gives to chat templates (``chat_template_utils``)."""
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """``{% generation %}``: a block that says what the assistant wrote."""

        tags = {"generation"}  # noqa: RUF012  as jinja2 wants it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_block", []), [], [], body).set_lineno(line)

        def _block(self, caller: Callable[[], str]) -> str:
            return caller()

    class Space(jinja2.utils.Namespace):
        """A namespace without names that begin with an underscore."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, names = args[0], dict(*args[1:], **kwargs)
            jinja2.utils.Namespace.__init__(self, {_named(name): value for name, value in names.items()})

        def __setitem__(self, name: str, value: Any) -> None:
            super().__setitem__(_named(name), value)

    def _named(name: Any) -> Any:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"no name may begin with an underscore: {name!r}")
        return name

    def refuse(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def as_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = as_json
    environment.globals.update(raise_exception=refuse, dict=dict, namespace=Space)
    return environment.from_string(source)


TASKS: dict[str, Callable[..., Any]] = {"render": render, "match": match}


def answer(task: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a task gives, or why it fails."""
    try:
        return {"result": TASKS[task](**arguments)}
    except MemoryError:
        return {"limit": "memory"}
    except RecursionError:
        return {"error": "it is nested too deep"}
    except Exception as error:  # a stranger's template fails in any way
        return {"error": f"{error}"[:1000] or type(error).__name__}


def main() -> None:
    """Tasks from stdin, a line each, until it ends; answers to stdout."""
    settings = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = settings["path"]
    import jinja2.ext
    import jinja2.sandbox  # noqa: F401  what is imported within a task counts against its time

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal; stdin then ends
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows, and macOS may refuse
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (settings["bytes"], settings["bytes"]))
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        for line in sys.stdin.buffer:
            _end_after(settings["seconds"], nowhere)
            content = json.dumps(answer(**json.loads(line)))
            _end_after(0, nowhere)
            sys.stdout.write(f"{content}\n")
            sys.stdout.flush()


def _end_after(seconds: float, nowhere: TextIO) -> None:
    """End this process after so many seconds, unless it is called again before; 0: do not."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)  # nobody handles its signal, which then ends the process
    elif seconds:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
    else:
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
