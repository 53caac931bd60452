"""The command line in processes of its own, forked with the libraries imported: a new interpreter takes seconds."""

from __future__ import annotations

import ctypes
import io
import json
import multiprocessing
import os
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from conviction.views import console

SERVER = multiprocessing.get_context("forkserver")
STUDY = ("conviction.cli.app", "conviction.studies.study", "conviction.interventions.dpo")
SERVER.set_forkserver_preload([*STUDY, "accelerate", "peft", "transformers.models.llama.modeling_llama"])


def _command(arguments: list[str], environment: dict[str, str], output: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with output.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    from conviction.cli.app import main

    torch.set_num_threads(1)
    sys.argv = ["conviction", *arguments]
    main()


def drop_privileges() -> None:
    """What root may beside its own files' modes is given back, so that they hold for it as for any user. Linux."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    for kind in (0, 1):  # what is in effect, and what could be
        sets[kind] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "the capabilities cannot be dropped")


def _commands(commands: list[list[str]], environment: dict[str, str], output: Path) -> None:
    from conviction.cli.app import main

    os.environ.update(environment)
    results = []
    drop_privileges()
    for arguments in commands:
        sys.argv = ["conviction", *arguments]
        out, err = io.StringIO(), io.StringIO()
        console.out.file, console.err.file = out, err
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        results.append((code, out.getvalue(), err.getvalue()))
    with output.open("w", encoding="utf-8") as file:
        json.dump(results, file)


def run_without_privileges(output: Path, *commands: tuple[str, ...]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each command, one after the other in a process that may only what modes allow."""
    process = SERVER.Process(target=_commands, args=([*map(list, commands)], dict(os.environ), output))
    process.start()
    process.join()
    return [(code, out, err) for code, out, err in json.loads(output.read_text(encoding="utf-8"))]


def begin(output: Path, *arguments: str, **environment: str) -> BaseProcess:
    """A process that runs the command. output: the file that what it prints is added to."""
    process = SERVER.Process(target=_command, args=(arguments, {**os.environ, **environment}, output))
    process.start()
    return process


def begin_group(output: Path, size: int, *arguments: str) -> list[BaseProcess]:
    """Processes that train together, with the environment that torchrun and `accelerate launch` give them."""
    if size == 1:
        return [begin(output, *arguments)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    return [begin(output, *arguments, **shared, RANK=str(i), LOCAL_RANK=str(i)) for i in range(size)]


def end(process: BaseProcess, *, kill: bool = False) -> int | None:
    """The exit code of a process that has ended by itself, or is killed: -9."""
    if kill:
        process.kill()
    process.join()
    return process.exitcode
