"""`pixelbert quickstart`: draw scenes, prepare them, pretrain the tiny size and a blind model, tell what came of it.

    OUT/quickstart.json   what was asked for, and when finished the figures
    OUT/scenes/           the drawn world (`scenes`)
    OUT/data/             the same as prepared data
    OUT/run/              the pretrained run, with its report
    OUT/run-blind/        the same recipe and steps with every picture replaced by a constant

Nothing is downloaded. Stopped half-way, the same command goes on where it was; after a finished quickstart it starts
anew.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelbert.bench.quickstart.scenes import VERSION, described, draw_scenes
from pixelbert.bench.quickstart.world import WORD_CLASSES
from pixelbert.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

RECIPE = "pretrain-tiny"
SCENES = {"train": 2000, "val": 200, "test": 200}
_PARTS = ("scenes", "data", "run", "run-blind")

#: How often a guess is right that knows the caption's other words and nothing of the picture, percent (`captions`).
CHANCE = {"color": 18.0, "shape": 18.0, "place": 36.0, "size": 50.0, "number": 33.0}


def run_quickstart(
    out: Path | str,
    *,
    seed: int = 0,
    keep: bool = True,
    scenes: Mapping[str, int] | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Draw, prepare, pretrain with and without pictures, report; everything lies under `out`.

    Args:
        seed: of the scenes and of the training.
        keep: False removes scenes, prepared data, blind run and checkpoints at the end; run and report stay.
        scenes: how many in train, val and test.
        overrides: `key=value` changes to the recipe, for both models.
        console: where to print; standard output by default.

    Returns what quickstart.json holds: "words" (percent right by class of word: true, shuffled, blind, chance,
    count), "figures" of the last validation, "report", "minutes".

    Raises UsageError when `out` holds something else, and what `draw_scenes`, `prepare` and `train` raise.
    """
    from rich.console import Console

    started, out = time.monotonic(), Path(out)
    console = console or Console(highlight=False)
    counts = SCENES | dict(scenes or {})
    _begin(out, {"version": VERSION, "seed": seed, "scenes": counts, "overrides": list(overrides)})
    _draw(out / "scenes", counts, seed, console)
    _prepare(out, console)
    figures = {}
    for name, blind in (("run", False), ("run-blind", True)):
        _say(console, "the same without pictures, to compare with" if blind else "pretraining on the captions")
        figures[name] = _train(out / "data", out / name, seed, overrides, blind)
    words = word_scores(_masked_words(out / "run"), _masked_words(out / "run-blind"))
    report = _report(out / "run")
    result = {
        "finished": True,
        "words": words,
        "figures": figures["run"],
        "figures_blind": figures["run-blind"],
        "report": str(report),
        "minutes": round((time.monotonic() - started) / 60, 2),
    }
    _write(out, _read(out) | result)
    if not keep:
        _tidy(out)
    _show(out, result, console)
    return _read(out)


def word_scores(seeing: Iterable[Mapping[str, Any]], blind: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Percent of masked words filled right, by class of word (color, shape, place, size, number).

    Args:
        seeing: rows of RUN/validation/masked_words.jsonl: word, predicted, predicted_shuffled.
        blind: rows of the blind run, of the same masked places.

    Returns:
        for each class: true (own picture), shuffled (another picture), blind, chance, count.
    """
    class_of = {word: name for name, words in WORD_CLASSES.items() for word in words}
    hits = {name: {"true": 0, "shuffled": 0, "blind": 0, "count": 0, "count_blind": 0} for name in WORD_CLASSES}
    for row in seeing:
        if name := class_of.get(row["word"]):
            hits[name]["count"] += 1
            hits[name]["true"] += row["predicted"] == row["word"]
            hits[name]["shuffled"] += row["predicted_shuffled"] == row["word"]
    for row in blind:
        if name := class_of.get(row["word"]):
            hits[name]["count_blind"] += 1
            hits[name]["blind"] += row["predicted"] == row["word"]
    return {
        name: {
            "true": _percent(found["true"], found["count"]),
            "shuffled": _percent(found["shuffled"], found["count"]),
            "blind": _percent(found["blind"], found["count_blind"]),
            "chance": CHANCE[name],
            "count": found["count"],
        }
        for name, found in hits.items()
    }


def _percent(hits: int, count: int) -> float:
    return round(100 * hits / max(1, count), 1)


# -- steps -------------------------------------------------------------------------------------------------------------


def _begin(out: Path, asked: dict[str, Any]) -> None:
    """Claim the folder: go on with an unfinished quickstart of the same settings, else clear away the earlier one."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "quickstart.json").is_file())):
        raise UsageError(f"{out}: exists and holds no quickstart; choose another folder with --out")
    before = _read(out) if out.is_dir() and any(out.iterdir()) else {}
    if before.get("finished") or before.get("asked") != asked:
        for part in _PARTS:
            shutil.rmtree(out / part, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    _write(out, {"finished": False, "asked": asked})


def _draw(folder: Path, counts: Mapping[str, int], seed: int, console: Console) -> None:
    total = sum(counts.values())
    _say(console, f"drawing {total:,} scenes with captions, questions and statements about pairs")
    if described(folder) != {"version": VERSION, "seed": seed, **counts}:
        draw_scenes(folder, train=counts["train"], val=counts["val"], test=counts["test"], seed=seed, overwrite=True)


def _prepare(out: Path, console: Console) -> None:
    from pixelbert.data.prepare import prepare

    _say(console, "preparing them, as any data set in Karpathy's format")
    if not (out / "data" / "prepared.json").is_file():
        scenes = out / "scenes"
        prepare("karpathy", [scenes / "dataset_scenes.json"], out / "data", images=[scenes / "images"])


def _train(data: Path, run: Path, seed: int, overrides: Sequence[str], blind: bool) -> dict[str, float]:
    """Train, or go on from the last checkpoint; the figures of the last validation."""
    from pixelbert.training.checkpoint import checkpoints
    from pixelbert.training.loop import train

    resume = bool(checkpoints(run))
    if not resume:
        shutil.rmtree(run, ignore_errors=True)  # killed before its first checkpoint
    return train(RECIPE, data, run, resume=resume, overrides=[f"seed={seed}", *overrides], blind=blind).metrics


def _masked_words(run: Path) -> list[dict[str, Any]]:
    path = run / "validation" / "masked_words.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); run the quickstart again") from error


def _report(run: Path) -> Path:
    from pixelbert.training.report import write_report

    return write_report(run)


def _tidy(out: Path) -> None:
    for part in ("scenes", "data", "run-blind", "run/checkpoints"):
        shutil.rmtree(out / part, ignore_errors=True)


# -- quickstart.json ---------------------------------------------------------------------------------------------------


def _read(out: Path) -> dict[str, Any]:
    """What quickstart.json holds; {} when it is damaged."""
    try:
        found = json.loads((out / "quickstart.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(out: Path, content: Mapping[str, Any]) -> None:
    from pixelbert.training.files import write_file

    write_file(out / "quickstart.json", json.dumps(content, indent=2) + "\n")


# -- what is printed ---------------------------------------------------------------------------------------------------


def _say(console: Console, text: str) -> None:
    console.print(f"[bold cyan]›[/] {text}")


def _show(out: Path, result: Mapping[str, Any], console: Console) -> None:
    """The summary: what the pictures gave, where the report lies, what to type next."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Hidden words filled in right, percent", title_justify="left", header_style="bold")
    table.add_column("kind of word")
    for heading in ("its picture", "another picture", "blind model", "guessing", "words"):
        table.add_column(heading, justify="right")
    for name, found in result["words"].items():
        own = Text(f"{found['true']:.1f}", style="bold green" if found["true"] > found["blind"] + 10 else "bold")
        others = (f"{found[key]:.1f}" for key in ("shuffled", "blind"))
        table.add_row(name, own, *others, f"{found['chance']:.0f}", f"{found['count']:,}")
    console.print()
    console.print(table)
    if "itm_accuracy" in result["figures"]:
        console.print(f"Own caption told from a foreign one: {result['figures']['itm_accuracy']:.1f} % (guessing 50)")
    console.print(f"{result['minutes']:.1f} minutes.\n")
    lines = [("report", result["report"])]
    if (out / "data").is_dir():
        command = f"pixelbert evaluate {out / 'run'} --data {out / 'data'} --blind {out / 'run-blind'}"
        lines.append(("score it again", command))
        lines.append(("on your own pictures", f"pixelbert prepare csv captions.csv --out {out.parent / 'mine'}"))
    for name, text in lines:
        console.print(f"[dim]{name:>20}[/]  {text}", soft_wrap=True)
