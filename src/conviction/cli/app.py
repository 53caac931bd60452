"""The command line: every command parses, calls a verb, and shows the result. Heavy imports come after parsing."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from typing import Annotated

import typer

from conviction.cli.apply import apply
from conviction.cli.audit import audit
from conviction.cli.compare import compare
from conviction.cli.forecast import forecast
from conviction.cli.groups import grouped
from conviction.cli.interventions import interventions
from conviction.cli.localize import localize
from conviction.cli.models import models
from conviction.cli.probe import probe
from conviction.cli.report import report
from conviction.cli.rule import rule
from conviction.cli.signals import EXIT_ERROR, HINT, ended_by_signals, wants_json
from conviction.cli.signals import INTERRUPTED as MESSAGE
from conviction.cli.study import study
from conviction.cli.topics import topics_app
from conviction.errors import ConvictionError, InputError, library_errors
from conviction.views import console
from conviction.views.text import show_error

__all__ = ["app", "main"]

TYPER_INTERRUPTED = 130  # what typer makes of Ctrl-C
INTERRUPTED = InputError(MESSAGE, hint=HINT)

app = typer.Typer(
    help="Measure what a language model is convinced of, and change it without breaking it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(topics_app, name="topics")
for command in (probe, audit, forecast, apply, study, compare, report, localize, rule, interventions, models):
    app.command()(grouped(command))


def main() -> None:
    """What the entry point calls. Every known error becomes an ``error:`` and a ``help:`` line and exit code 2."""
    # Threads that wait for others spin, which makes training six times slower beside one other busy process (by the
    # default of libgomp); so many turns cost nothing alone. Read when torch is imported; a value of the user stays.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    console.prepare()
    code: int = EXIT_ERROR
    error: ConvictionError | None = INTERRUPTED
    with suppress(KeyboardInterrupt), ended_by_signals():
        code, error = _run()
    if error is not None:
        show_error(error, "json" if wants_json(sys.argv[1:]) else "text")
    sys.exit(code)


def _run() -> tuple[int, ConvictionError | None]:
    """The exit code, and the error to be shown, if there is one."""
    try:
        with library_errors():
            code = app(standalone_mode=False) or 0  # typer returns the code of a typer.Exit
            console.flush()
    except ConvictionError as error:
        return EXIT_ERROR, error
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors have one
            hint = "`conviction --help` and `conviction VERB --help` show usage"
            return EXIT_ERROR, InputError(error.format_message(), hint=hint)
        traceback.print_exc()  # a bug: Python's own exit code would be 1, which means findings
        return EXIT_ERROR, None
    return (EXIT_ERROR, INTERRUPTED) if code == TYPER_INTERRUPTED else (code, None)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        console.print_line(f"conviction {version('conviction')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
