"""The small CNN's pass over photos in a process of its own, with freed memory kept or returned as glibc does.

Two processes, because one that has once kept its memory does not give it all back.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pixelbert.errors import MachineError
from pixelbert.model.memory import keep_freed


@contextmanager
def cnn_passes(photos: int, keep: bool) -> Iterator[Callable[[], float]]:
    """A function that has another process compute one pass; it gives the sum of the pixels."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-m", "pixelbert.bench.freed", str(photos), "keep" if keep else "return"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, bufsize=1
    ) as process:
        asked, told = process.stdin, process.stdout
        assert asked is not None and told is not None

        def run() -> float:
            asked.write("\n")
            line = told.readline()
            if not line:
                raise MachineError(f"the process for one pass of the CNN ended, exit code {process.wait()}")
            return float(line)

        yield run


def answer(photos: int, keep: bool) -> None:
    """A pass for every line that comes in."""
    if keep:
        keep_freed()
    import torch

    from pixelbert.bench.ratios import batch_of_noise, encode, small_model
    from pixelbert.model import precision

    model, batch = small_model(), batch_of_noise(photos)
    run = encode(model, batch, torch.bfloat16 if precision.choose().backbone == "bfloat16" else None)
    for _ in sys.stdin:
        print(run().double().sum().item(), flush=True)


if __name__ == "__main__":
    answer(int(sys.argv[1]), sys.argv[2] == "keep")
