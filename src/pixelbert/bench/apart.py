"""Work of the small size in a process of its own: for ways that a process takes once and for all.

One that has kept its memory does not give it all back, and OpenMP reads how long threads spin when it is loaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property

from pixelbert.errors import MachineError
from pixelbert.model.memory import keep_freed
from pixelbert.model.precision import cores

_OURS = ("MALLOC_", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # taken out: each process is told its own


class Apart:
    """A process that does `work` once for each call, which gives a sum of what came out. It starts with the first.

    work: `cnn` or `cnn-keeping`, the CNN's pass over the photos, with freed memory returned or kept; `step`, a step of
    pretraining. settings: environment variables.
    """

    def __init__(self, work: str, photos: int, settings: Mapping[str, str] | None = None) -> None:
        self.work, self.photos, self.settings = work, photos, dict(settings or {})

    @cached_property
    def _process(self) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        command = [sys.executable, "-m", "pixelbert.bench.apart", self.work, str(self.photos)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment | self.settings
        )

    def __call__(self) -> float:
        """Raises MachineError when the process has ended."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        print(file=process.stdin, flush=True)
        line = process.stdout.readline()
        if not line:
            raise MachineError(f"bench: the process for '{self.work}' ended, exit code {process.wait()}")
        return float(line)

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        if "_process" in vars(self):
            self._process.__exit__(None, None, None)  # closes its pipes, which ends it, and waits


@contextmanager
def busy_cores() -> Iterator[None]:
    """Every core has other work meanwhile."""
    with ExitStack() as stack:
        for _ in range(cores()):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
        yield


def answer(work: str, photos: int) -> None:
    """The work once for every line that comes in."""
    if work == "cnn-keeping":
        keep_freed()
    import torch

    from pixelbert.bench.ratios import batch_of_noise, encode, small_model, step
    from pixelbert.model import precision

    model, batch = small_model(), batch_of_noise(photos)
    if work == "step":
        train = step(model, batch)
        run: Callable[[], torch.Tensor] = lambda: torch.tensor(train())  # noqa: E731
    else:
        run = encode(model, batch, torch.bfloat16 if precision.choose().backbone == "bfloat16" else None)
    for _ in sys.stdin:
        print(run().double().sum().item(), flush=True)


if __name__ == "__main__":
    answer(sys.argv[1], int(sys.argv[2]))
