"""From an exception to an exit code and the one sentence that says what to do."""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import typer

from pixelbert.errors import DataError, MachineError, PixelBertError, UsageError, nearest

INTERRUPTED = 130


def explain(error: BaseException, arguments: Sequence[str] = ()) -> tuple[int, str]:
    """The exit code of an exception, and the one sentence that says what to do."""
    if isinstance(error, (KeyboardInterrupt, EOFError, typer.Abort)):
        return INTERRUPTED, _interrupted(arguments)
    if isinstance(error, BrokenPipeError):  # the reader (head, less) went away: not an error of ours
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - else Python complains once more at exit
        return 1, ""
    if hasattr(error, "format_message"):  # typer's own: a wrong command line
        return UsageError.exit_code, _usage(error)
    known = error if isinstance(error, PixelBertError) else _translate(error)
    if known is not None:
        return known.exit_code, _one_line(_from_worker(str(known)))
    return 1, f"an error that should not happen: {_kind(error)}; run it again with --debug and report the traceback"


def _translate(error: BaseException) -> PixelBertError | None:
    """What the machine or a library refused, as one of our errors; None when it is none of these."""
    text = str(error)
    if _is_disk_full(error):
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        return MachineError(
            f"{where}the disk is full; free some space or write elsewhere with --out, then run it again"
        )
    if _is_out_of_memory(error):
        return MachineError(
            "out of memory; lower optim.micro_batch or data.workers, or set train.gradient_checkpointing=true "
            "(the batch of a step stays the same)"
        )
    if isinstance(error, UnicodeEncodeError) and "surrogates not allowed" in text:
        return DataError(f"a name is not UTF-8: {error.object[:200]!r}; rename the file or folder")
    if isinstance(error, RuntimeError) and "DataLoader worker" in text and "killed" in text:
        return MachineError(
            "a loader worker was killed, most often for want of memory; lower data.workers (0 uses none)"
        )
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("pixelbert"):
        return MachineError(f"the package '{error.name}' is missing; {_how_to_get(error.name.partition('.')[0])}")
    if isinstance(error, (NotADirectoryError, FileExistsError)):  # a file where a folder is to be
        return UsageError(f"{error.filename}: {(error.strerror or text).lower()}; choose another place")
    if isinstance(error, (FileNotFoundError, IsADirectoryError)):
        return DataError(f"{error.filename}: {(error.strerror or text).lower()}")
    if isinstance(error, OSError):
        return MachineError(f"{error.filename}: {(error.strerror or text).lower()}" if error.filename else text)
    return None


def _is_disk_full(error: BaseException) -> bool:
    """Full disk or quota, also where torch, safetensors or Arrow say so in words only."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    words = ("no space left on device", "os error 28", "disk quota exceeded", "pytorchstreamwriter failed writing")
    return any(word in str(error).lower() for word in words)


def _is_out_of_memory(error: BaseException) -> bool:
    """Python's, NumPy's, torch's and the operating system's ways of saying it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def _how_to_get(module: str) -> str:
    """The command that installs a missing package."""
    from pixelbert.doctor import CORE, EXTRAS

    for extra, packages in EXTRAS.items():
        if module in packages.values():
            return "pip install " + " ".join(f'"{requirement}"' for requirement in packages) + f" (the extra '{extra}')"
    requirement = next((name for name, imported in CORE.items() if imported == module), module)
    return f'pip install "{requirement}"'


def _from_worker(text: str) -> str:
    """The message of an error that torch carried over from a loader worker, without the traceback it packs into it."""
    if not text.startswith("Caught ") or "Original Traceback" not in text:
        return text
    last = text.strip().splitlines()[-1]
    return last.partition(": ")[2] or last


def _usage(error: Any) -> str:
    """A wrong command line in one sentence, with the nearest valid name."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "pixelbert"
    where = path.removeprefix("pixelbert").strip()
    where = f"{where}: " if where else ""
    message = _one_line(error.format_message()).rstrip(".")
    option = getattr(error, "option_name", None)
    command = re.match(r"No such command '(.*?)'", message)
    if option and message.startswith("No such option") and context:
        valid = [
            name for parameter in context.command.get_params(context) for name in parameter.opts if name[:1] == "-"
        ]
        return f"{where}no such option '{option}'; {_as_setting(option, context) or nearest(option, valid)}"
    if command and context:
        return f"{where}no such command '{command[1]}'; {nearest(command[1], context.command.commands)}"
    return f"{where}{message[:1].lower()}{message[1:]}; see {path} --help"


def _as_setting(option: str, context: Any) -> str:
    """`--epochs` of a verb that takes changes to the recipe: how such a change is written; "" where it is none."""
    if not any(parameter.name == "overrides" for parameter in context.command.params):
        return ""
    from pixelbert.recipes.schema import setting_names, settings_called

    name, known = option.lstrip("-").replace("-", "_"), setting_names()
    ends = [name] if name in known else settings_called(name, known)
    return f"a change to the recipe is written {' or '.join(f'{end}=VALUE' for end in ends[:3])}" if ends else ""


def _interrupted(arguments: Sequence[str]) -> str:
    """What to type to go on."""
    command = ["pixelbert", *arguments]
    if "train" in arguments[:1]:
        command += [] if "--resume" in arguments else ["--resume"]
        return f"interrupted; to continue: {shlex.join(command)}"
    return f"interrupted; nothing is half-written; to run it again: {shlex.join(command)}"


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _kind(error: BaseException) -> str:
    text = _one_line(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
