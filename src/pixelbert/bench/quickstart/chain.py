"""The runs of a quickstart: pretraining, then the three tasks from it; the same without pictures beside.

`python -m pixelbert.bench.quickstart.chain OUT SEED [KEY=VALUE ...]` trains the runs without pictures: the quickstart
starts it as a process of its own, so that two cores do both at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pixelbert.model.precision import cores

#: Of each run its folder, recipe and prepared data, in their order; the first one is what the others start from.
RUNS = (
    ("pretraining", "pretrain-tiny", "pairs"),
    ("questions", "vqa-tiny", "questions"),
    ("statements", "nlvr2-tiny", "statements"),
    ("retrieval", "retrieval-tiny", "pairs"),
)
_SAID = {
    "pretraining": "pretraining on the captions",
    "questions": "fine-tuning on the questions",
    "statements": "fine-tuning on the statements about two pictures",
    "retrieval": "fine-tuning to find a picture by its caption",
}


def name_of(run: str, blind: bool) -> str:
    """The folder of a run, or of the same without pictures."""
    return f"{run}-blind" if blind else run


def train_all(
    out: Path, seed: int, overrides: Sequence[str], blind: bool, say: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Train the four runs, or go on from their last checkpoints; the figures of each one's last validation."""
    figures = {}
    for run, recipe, data in RUNS:
        say(f"{_SAID[run]}{', without the pictures' if blind else ''}")
        start = out / name_of(RUNS[0][0], blind) if run != RUNS[0][0] else None
        figures[run] = _train(recipe, out / "data" / data, out / name_of(run, blind), start, seed, overrides, blind)
    return figures


def _train(
    recipe: str, data: Path, run: Path, start: Path | None, seed: int, overrides: Sequence[str], blind: bool
) -> dict[str, float]:
    from pixelbert.inference.attention_examples import write_attention
    from pixelbert.training.several import train_on

    changes = [f"seed={seed}", *overrides]
    return train_on(recipe, data, run, from_run=start, overrides=changes, blind=blind, attend=write_attention)


def _figures(out: Path) -> Path:
    """Where the process without pictures leaves what its runs came to."""
    return out / "blind.json"


class Beside:
    """The runs without pictures, in a process of their own while the block runs; its words go to OUT/blind.log."""

    def __init__(self, out: Path, seed: int, overrides: Sequence[str]) -> None:
        self.command = [sys.executable, "-m", __spec__.name, str(out), str(seed), *overrides]
        self.log, self.figures = out / "blind.log", _figures(out)

    def __enter__(self) -> Beside:
        import torch

        half = max(1, cores() // 2)
        self.threads = torch.get_num_threads()
        torch.set_num_threads(half)
        environment = os.environ | {"OMP_NUM_THREADS": str(half)}
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        return self

    def wait(self) -> dict[str, dict[str, float]] | None:
        """The figures of its runs; None when it went wrong: who trains what is missing meets the reason."""
        if self.process.wait() != 0:
            return None
        figures: dict[str, dict[str, float]] = json.loads(self.figures.read_text(encoding="utf-8"))
        return figures

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_num_threads(self.threads)
        if self.process.poll() is None:  # this process is stopped: so is the other, which saves where it is
            self.process.send_signal(signal.SIGINT)
            self.process.wait()


def main() -> int:
    """Train the runs without pictures."""
    out, seed, *overrides = sys.argv[1:]
    try:
        figures = train_all(Path(out), int(seed), overrides, True, lambda text: print(text, flush=True))
    except KeyboardInterrupt:
        return 130
    _figures(Path(out)).write_text(json.dumps(figures), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
