"""The command line in processes of its own, forked with the libraries imported: a new interpreter takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

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
