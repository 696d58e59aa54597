"""`pixelbert quickstart`: draw scenes, pretrain the tiny size on them, fine-tune the three tasks, tell what came of it.

    OUT/quickstart.json   what was asked for, and when finished the figures
    OUT/report.html       the whole story on one page
    OUT/scenes/           the drawn world (`scenes`)
    OUT/data/             the same as prepared data: pairs, questions, statements; vocab.txt of their words
    OUT/pretraining/      the runs, with their reports: also questions, statements and retrieval, which start from it
    OUT/pretraining-blind/ ...  the same recipes and steps with every picture replaced by a constant

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

from pixelbert.bench.quickstart.chain import RUNS, Beside, name_of, train_all
from pixelbert.bench.quickstart.scenes import VERSION, described, draw_scenes
from pixelbert.bench.quickstart.world import WORD_CLASSES
from pixelbert.errors import CheckpointError, UsageError
from pixelbert.model.precision import cores

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

SCENES = {"train": 4000, "val": 200, "test": 200}
_BLIND = tuple(name_of(run, True) for run, _, _ in RUNS)
_PARTS = ("scenes", "data", "features", "report.html", "blind.log", "blind.json", *(run for run, _, _ in RUNS), *_BLIND)

#: Of each task the figure of its score, and what that is called.
SCORES = {
    "questions": ("vqa_score", "questions, official VQA accuracy"),
    "statements": ("accuracy", "statements, official NLVR2 accuracy"),
    "retrieval": ("t2i_r1", "picture by caption, R@1"),
}

#: How often a guess is right that knows the caption's other words and nothing of the picture, percent (`captions`).
CHANCE = {"color": 18.0, "shape": 18.0, "place": 36.0, "size": 50.0, "number": 33.0}


def run_quickstart(
    out: Path | str,
    *,
    seed: int = 0,
    keep: bool = True,
    scenes: Mapping[str, int] | None = None,
    overrides: Sequence[str] = (),
    parallel: bool | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Draw, prepare, pretrain and fine-tune with and without pictures, report; everything lies under `out`.

    Args:
        seed: of the scenes and of the training.
        keep: False removes scenes, prepared data, blind runs and checkpoints at the end; runs and reports stay.
        scenes: how many in train, val and test.
        overrides: `key=value` changes to every recipe, for both models.
        parallel: the models without pictures in a process of their own; None = where there are two cores.
        console: where to print; standard output by default.

    Returns what quickstart.json holds: "words" (percent right by class of word: true, shuffled, blind, chance,
    count), "figures" and "figures_blind" of each run's last validation, "report", "minutes".

    Raises UsageError when `out` holds something else, and what `draw_scenes`, `prepare` and `train` raise.
    """
    from rich.console import Console

    started, out = time.monotonic(), Path(out)
    console = console or Console(highlight=False)
    counts = SCENES | dict(scenes or {})
    _begin(out, {"version": VERSION, "seed": seed, "scenes": counts, "overrides": list(overrides)})
    _draw(out / "scenes", counts, seed, console)
    _prepare(out, console)
    changes = [f"text.vocab={_vocabulary(out)}", *overrides]
    figures, blind = _runs(out, seed, changes, cores() > 1 if parallel is None else parallel, console)
    words = word_scores(_masked_words(out / "pretraining"), _masked_words(out / "pretraining-blind"))
    minutes = round((time.monotonic() - started) / 60, 2)
    result = {
        "finished": True,
        "words": words,
        "figures": figures,
        "figures_blind": blind,
        "report": str(_report(out, words, minutes)),
        "minutes": minutes,
    }
    _write(out, _read(out) | result)
    if not keep:
        _tidy(out)
    _show(out, result, console)
    return _read(out)


def _runs(
    out: Path, seed: int, changes: Sequence[str], parallel: bool, console: Console
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Train everything: the figures of the runs that see, and of those that do not."""

    def say(text: str) -> None:
        _say(console, text)

    if not parallel:
        figures = train_all(out, seed, changes, False, say)
        return figures, train_all(out, seed, changes, True, say)
    say("beside it, on the other core: the same without pictures, to compare with")
    with Beside(out, seed, changes) as beside:
        figures = train_all(out, seed, changes, False, say)
        say("waiting for the models without pictures")
        blind = beside.wait()
    return figures, blind or train_all(out, seed, changes, True, say)


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
            path = out / part
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    _write(out, {"finished": False, "asked": asked})


def _draw(folder: Path, counts: Mapping[str, int], seed: int, console: Console) -> None:
    total = sum(counts.values())
    _say(console, f"drawing {total:,} scenes with captions, questions and statements about pairs")
    if described(folder) != {"version": VERSION, "seed": seed, **counts}:
        draw_scenes(folder, train=counts["train"], val=counts["val"], test=counts["test"], seed=seed, overwrite=True)


def _prepare(out: Path, console: Console) -> None:
    from pixelbert.data.prepare import prepare

    _say(console, "preparing them, as any data in the official formats")
    scenes, data = out / "scenes", out / "data"
    statements = [path for path in sorted((scenes / "nlvr2").glob("*.json")) if path.stat().st_size]
    for name, kind, sources, images in (
        ("pairs", "karpathy", [scenes / "dataset_scenes.json"], "images"),
        ("questions", "vqa", [scenes / "vqa"], "images"),
        ("statements", "nlvr2", statements, "nlvr2/images"),
    ):
        if not (data / name / "prepared.json").is_file():
            prepare(kind, sources, data / name, images=[scenes / images], console=_silent())


def _silent() -> Console:
    import io

    from rich.console import Console

    return Console(file=io.StringIO())


def _vocabulary(out: Path) -> Path:
    """The words of all captions, questions and statements of the training scenes, as a WordPiece vocabulary."""
    from pixelbert.data.records import PreparedData
    from pixelbert.model.tokenization import train_wordpiece
    from pixelbert.recipes.schema import load_recipe
    from pixelbert.training.files import write_file

    path = out / "data" / "vocab.txt"
    if not path.is_file():
        splits = [PreparedData(out / "data" / name).split("train") for name in ("pairs", "questions", "statements")]
        texts = (split.text(record) for split in splits for record in range(split.num_records))
        pieces = train_wordpiece(texts, load_recipe("pretrain-tiny").text.vocab_size)
        write_file(path, "".join(f"{piece}\n" for piece in pieces))
    return path


def _masked_words(run: Path) -> list[dict[str, Any]]:
    path = run / "validation" / "masked_words.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); run the quickstart again") from error


def _report(out: Path, words: Mapping[str, Mapping[str, float]], minutes: float) -> Path:
    from pixelbert.training.report.story import write_story

    return write_story(
        out / "report.html",
        {_TITLES[run]: out / run for run, _, _ in RUNS},
        title="A network that reads pixels and words",
        lead="Drawn scenes, a tiny Pixel-BERT from random weights, and the same without the pictures beside it.",
        facts={"time in all": f"{minutes:.1f} min"},
        words=words,
    )


_TITLES = {
    "pretraining": "Pretraining", "questions": "Questions", "statements": "Statements about two pictures",
    "retrieval": "Pictures by sentence",
}  # fmt: skip


def _tidy(out: Path) -> None:
    for part in ("scenes", "data", "features", *_BLIND, *(f"{run}/checkpoints" for run, _, _ in RUNS)):
        shutil.rmtree(out / part, ignore_errors=True)
    for part in ("blind.log", "blind.json"):
        (out / part).unlink(missing_ok=True)


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
    scores = Table(title="Held-out scores, percent", title_justify="left", header_style="bold")
    scores.add_column("task")
    for heading in ("with the picture", "blind model"):
        scores.add_column(heading, justify="right")
    scores.add_row("own caption or a foreign one", *_pair(result, "pretraining", "itm_accuracy"))
    for run, (figure, label) in SCORES.items():
        scores.add_row(label, *_pair(result, run, figure))
    console.print(scores)
    console.print(f"{result['minutes']:.1f} minutes.\n")
    lines = [("the whole story", result["report"])]
    if (out / "data").is_dir():
        picture = min((out / "scenes" / "images" / "val").glob("*.png"))
        lines.append(("ask", f'pixelbert ask {out / "questions"} {picture} "What color is the star?"'))
        lines.append(("on your own pictures", f"pixelbert prepare csv captions.csv --out {out.parent / 'mine'}"))
    for name, text in lines:
        console.print(f"[dim]{name:>20}[/]  {text}", soft_wrap=True)


def _pair(result: Mapping[str, Any], run: str, figure: str) -> tuple[Text, str]:
    from rich.text import Text

    own, blind = (result[key][run].get(figure, 0.0) for key in ("figures", "figures_blind"))
    return Text(f"{own:.1f}", style="bold green" if own > blind + 10 else "bold"), f"{blind:.1f}"
