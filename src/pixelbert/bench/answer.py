"""From the command to its answer: `pixelbert bench answer --run RUN`, each time a process of its own."""

from __future__ import annotations

import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pixelbert.bench.images import draw_photos
from pixelbert.errors import CheckpointError
from pixelbert.tasks.run import read_recipe

#: Of each task the verb that answers, and what it is asked about a photo.
_ASKED = {
    "pretraining": ("match", "a dog runs through the snow"),
    "retrieval": ("match", "a dog runs through the snow"),
    "question_answering": ("ask", "What is the dog doing?"),
    "image_pairs": ("compare", "there is a dog in both pictures"),
}
_PART = re.compile(r"(imports|opening the run|answer) ([\d.]+) s")


def run_answer(run: Path, rounds: int = 3) -> list[dict[str, Any]]:
    """Rows of {part, seconds, processor_seconds}: the medians of some calls after one that warms the disk's cache.

    `seconds` are those of the clock, from the command to the end of its process; the parts are as `--timing` tells.
    Raises CheckpointError for a folder that is no run, and what the verb says when it fails.
    """
    verb, text = _ASKED[read_recipe(run).task]
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        photo.write_bytes(draw_photos(1)[0])
        photos = [str(photo)] * (2 if verb == "compare" else 1)
        command = [sys.executable, "-m", "pixelbert", verb, str(run), *photos, text, "--timing", "--json"]
        calls = [_call(command) for _ in range(rounds + 1)][1:]
    names = [name for name in calls[0] if name != "processor"]
    rows = [{"part": name, "seconds": round(statistics.median(c[name] for c in calls), 2)} for name in names]
    rows[-1]["processor_seconds"] = round(statistics.median(c["processor"] for c in calls), 2)
    return rows


def _call(command: list[str]) -> dict[str, float]:
    """Seconds of each part of one call, of `all`, and of the `processor`."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise CheckpointError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    parts = {name: float(value) for name, value in _PART.findall(done.stderr)}
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**parts, "start and end": seconds - sum(parts.values()), "all": seconds, "processor": used}
