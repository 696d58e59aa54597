"""Training in processes of their own, which may be killed: started from a server that has imported everything once.

A fork of the test process would carry its threads and its accelerate state along; a fresh interpreter for each job
would import torch and transformers each time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).parent


def run_job(target: Callable[..., Any], *args: Any, timeout: float = 300) -> int:
    """Run `target(*args)` in a process; its exit code, or minus the signal that ended it."""
    return run_jobs([(target, args)], timeout)[0]


def run_jobs(jobs: list[tuple[Callable[..., Any], tuple[Any, ...]]], timeout: float = 300) -> list[int]:
    """Several at the same time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_jobs", "tiny_runs", "pixelbert.training.loop", "pixelbert.cli"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(_HERE), str(_HERE.parent / "src")]))
        processes = [context.Process(target=target, args=args) for target, args in jobs]
        for process in processes:
            process.start()
    codes = []
    for process in processes:
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
        assert process.exitcode is not None
        codes.append(process.exitcode)
    return codes


def train_until_killed(recipe: Any, data: Path, run: Path, where: str, step: int, **options: Any) -> None:
    """Train, and be killed without warning at a place of a step's end."""
    with killed_at(where, step):
        train_quietly(recipe, data, run, **options)


def train_quietly(recipe: Any, data: Path, run: Path, **options: Any) -> None:
    """`train`, its lines on stderr thrown away."""
    from pixelbert.training.loop import train

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        train(recipe, data, run, **options)


def command_line(arguments: list[str], stderr: Path, interrupt_at: int = 0) -> None:
    """`pixelbert ARGUMENTS`, its stderr in a file; with Ctrl-C to all its processes when a step is written down."""
    from pixelbert.cli import main

    os.setpgid(0, 0)
    with open(stderr, "w", buffering=1) as file:
        os.dup2(file.fileno(), 2)
        sys.stderr = file
        with interrupted_at(interrupt_at, group=True) if interrupt_at else contextlib.nullcontext():
            code = main(arguments)
    os._exit(code)


@contextlib.contextmanager
def killed_at(where: str, step: int) -> Iterator[None]:
    """SIGKILL to this process when step `step` comes to `where`."""
    import torch

    from pixelbert.training import checkpoint, files, loop, run_folder

    def kill(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def at_step(function: Callable[..., Any], now: Callable[..., int], before: bool = False) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if before and now(*args, **kwargs) == step:
                kill()
            result = function(*args, **kwargs)
            if now(*args, **kwargs) == step:
                kill()
            return result

        return wrapped

    def saving(run: Path, done: int, *_: Any) -> int:
        return done

    with pytest.MonkeyPatch.context() as patch:
        if where == "line written":
            patch.setattr(
                checkpoint.MetricsFile, "write",
                at_step(checkpoint.MetricsFile.write, lambda _, **row: row["step"] if row["kind"] == "train" else -1),
            )  # fmt: skip
        elif where == "checkpoint half written":
            save = torch.save

            def half(state: Any, path: Path) -> None:
                save(state, path)
                if f"step-{step:08d}" in str(path):
                    path.write_bytes(path.read_bytes()[:1000])
                    kill()

            patch.setattr(torch, "save", half)
        elif where == "checkpoint not yet renamed":
            sync = files.sync_file
            patch.setattr(
                files, "sync_file", lambda path: kill() if path.name == f".step-{step:08d}.writing" else sync(path)
            )
        elif where == "checkpoint saved":
            patch.setattr(loop, "save_checkpoint", at_step(checkpoint.save_checkpoint, saving))
        elif where == "best replaced":
            patch.setattr("pixelbert.training.validation.save_last", kill)
        elif where == "last taken away":
            rename = Path.rename

            def cut(path: Path, target: Path) -> Path:
                return kill() if path.name == ".last.writing" and target.parent == path.parent else rename(path, target)  # type: ignore[return-value,func-returns-value]

            patch.setattr(Path, "rename", cut)
        elif where == "run.json written":
            patch.setattr(run_folder, "take_from_folder", kill)
        else:
            raise ValueError(where)
        yield


@contextlib.contextmanager
def interrupted_at(step: int, number: int = signal.SIGINT, group: bool = False) -> Iterator[None]:
    """Ctrl-C (or another signal) to this process, or its whole group, when step `step` is written down."""
    from pixelbert.training.checkpoint import MetricsFile

    write = MetricsFile.write

    def interrupting(self: MetricsFile, **row: Any) -> None:
        write(self, **row)
        if row["kind"] == "train" and row["step"] == step:
            os.killpg(os.getpgrp(), number) if group else os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsFile, "write", interrupting)
        yield


Job = tuple[Callable[..., None], tuple[Any, ...], dict[str, Any]]


def on_ranks(ranks: int, *jobs: Job) -> list[int]:
    """Run the jobs one after another in `ranks` processes as a launcher starts them; the processes' exit codes."""
    port = free_port()
    return run_jobs([(_as_rank, (rank, ranks, port, jobs)) for rank in range(ranks)])


def _as_rank(rank: int, ranks: int, port: int, jobs: tuple[Job, ...]) -> None:
    from accelerate.state import AcceleratorState

    from pixelbert.errors import PixelBertError

    for number, (target, args, options) in enumerate(jobs):
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port + number), ACCELERATE_USE_CPU="true",
        )  # fmt: skip
        try:
            target(*args, **options)
        except PixelBertError as error:
            os._exit(error.exit_code)
        AcceleratorState._reset_state(reset_partial_state=True)


def train_until_one_is_asked_to_stop(recipe: Any, data: Path, run: Path, step: int) -> None:
    """Train; the second process alone gets SIGTERM at a step, and both must stop there."""
    asked = interrupted_at(step, signal.SIGTERM) if os.environ["RANK"] == "1" else contextlib.nullcontext()
    with asked, contextlib.suppress(KeyboardInterrupt):
        train_quietly(recipe, data, run)
        os._exit(1)  # it did not stop


def train_until_one_is_lost(recipe: Any, data: Path, run: Path, step: int) -> None:
    """Train; the second process is killed at a step."""
    with killed_at("line written", step) if os.environ["RANK"] == "1" else contextlib.nullcontext():
        train_quietly(recipe, data, run)


def free_port() -> int:
    """A port that is free now, and hopefully the few after it."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
