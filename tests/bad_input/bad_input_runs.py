"""What the runs of these tests are saved like, and all that they could lose."""

from __future__ import annotations

from pathlib import Path

SAVES = ("train.save_steps=2", "schedule.pairs=48", "validation.times=1")


def states(run: Path) -> dict[str, bytes]:
    """All that a run could lose: its checkpoints and models."""
    files = [*run.glob("checkpoints/*/*"), *run.glob("*.safetensors"), *run.glob("last/*.safetensors")]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}
