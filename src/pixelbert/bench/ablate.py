"""`pixelbert ablate`: the paper's Table 6 by one command: rows of pretraining, each through the downstream tasks.

    OUT/ablation.json                         what was asked for, every finished figure, the comparisons
    OUT/table.md                              the paper's table beside ours
    OUT/row-5/seed-0/pretraining  vqa  ...    the runs; their checkpoints go when a row's figures are kept
    OUT/features                              kept features of frozen CNNs, for all rows; they go at the end

Stopped half-way, the same command goes on: a finished run is not run again, an unfinished one is resumed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pixelbert.data.records import PreparedData
from pixelbert.errors import CheckpointError, UsageError, nearest
from pixelbert.recipes.schema import Loss, Recipe, load_recipe
from pixelbert.tasks.table import TASKS


@dataclass(frozen=True)
class Row:
    """A row of Table 6: what is pretrained with what. `paper`: VQA test-dev, TR and IR R@1 (val), NLVR2 dev."""

    number: int
    label: str
    mlm: bool = True
    itm: bool = True
    sampled: bool = True
    larger: bool = False
    paper: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    @property
    def pretrained(self) -> bool:
        """Whether there is any pretraining."""
        return self.mlm or self.itm

    def changes(self) -> list[str]:
        """The row as changes to a pretraining recipe: the paper's losses and masking alone, no phases, its sampling."""
        weights = dict.fromkeys(Loss.model_fields, 0) | {"mlm": int(self.mlm), "itm": int(self.itm)}
        losses = ", ".join(f"{name}: {weight}" for name, weight in weights.items())
        changes = [f"loss={{{losses}}}", "contrastive_size=0", "phases=[]", "itm.hard_share=0", "mlm.probability=0.15",
                   "mlm.heavy_share=0", "visual.skip=false", "itm.calibration_images=0",
                   "itm.words=false"]  # fmt: skip
        measure = "validation.select_on=" + ("itm_accuracy" if self.itm else "mlm_accuracy")
        return [*changes, measure, *([] if self.sampled else ["visual.num_sampled_pixels=0"])]


ROWS = (
    Row(1, "no pretraining", mlm=False, itm=False, paper=(63.50, 52.4, 39.6, 52.0)),
    Row(2, "ITM", mlm=False, paper=(65.24, 69.0, 55.5, 51.9)),
    Row(3, "MLM", itm=False, paper=(71.13, 67.1, 52.7, 70.9)),
    Row(4, "MLM + ITM, all pixels", sampled=False, paper=(70.84, 72.0, 57.7, 71.3)),
    Row(5, "MLM + ITM, random pixels", paper=(71.35, 75.7, 59.8, 71.7)),
    Row(6, "MLM + ITM, random pixels, larger CNN", larger=True, paper=(74.45, 87.0, 71.5, 76.5)),
)
COLUMNS = ("VQA", "TR R@1", "IR R@1", "NLVR2")
_FIGURES = {"vqa": ("vqa_score",), "retrieval": ("i2t_r1", "t2i_r1"), "nlvr2": ("accuracy",)}
_TASKS = ("vqa", "retrieval", "nlvr2")
_OF_PRETRAINING = {
    "itm_accuracy": "matches right",
    "mlm_accuracy": "masked words right",
    "mlm_gain_shuffled": "more than with another picture",
}

#: What the paper finds, as (name, better row, worse rows).
CLAIMS = (
    ("pretraining helps (5 over 1)", 5, (1,)),
    ("both losses are best (5 over 2 and 3)", 5, (2, 3)),
    ("random pixels are no worse than all (5 over 4)", 5, (4,)),
    ("a larger CNN is better (6 over 5)", 6, (5,)),
)


@dataclass(frozen=True)
class Ablation:
    """What is run.

    data: prepared data for `pairs` (pretraining and retrieval), `vqa` and `nlvr2`.
    size: `small` or `tiny`: the recipes pretrain-SIZE, vqa-SIZE, retrieval-SIZE, nlvr2-SIZE.
    pairs, examples, retrieval_examples: seen in pretraining, and in each downstream task.
    retrieval_images: held-out images that are ranked exactly.
    larger: changes to every recipe for the row with the larger CNN. overrides: changes to every recipe of every row.
    pretraining: changes to the pretraining recipes alone, after the row's own.
    """

    data: Mapping[str, str]
    size: str = "small"
    rows: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    seeds: tuple[int, ...] = (0,)
    pairs: int = 20_000
    examples: int = 8_000
    retrieval_examples: int = 2_000
    retrieval_images: int = 200
    larger: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    pretraining: tuple[str, ...] = ()


@dataclass
class AblationResult:
    """figures[row][seed][name] in percent; claims: what holds, fails or is a tie; table: Markdown.

    pretraining[row][seed][name]: what the pretraining itself came to on its held-out images. Whether a row has learnt
    to look at the picture at all stands there, and that is what explains the rest.
    """

    figures: dict[int, dict[int, dict[str, float]]] = field(default_factory=dict)
    pretraining: dict[int, dict[int, dict[str, float]]] = field(default_factory=dict)
    claims: list[dict[str, Any]] = field(default_factory=list)
    table: str = ""
    fingerprints: Mapping[str, str] = field(default_factory=dict)  # of the data, by what it is for


def ablate(out: Path | str, asked: Ablation, say: Callable[[str], None] = print) -> AblationResult:
    """Run the rows, keep each finished figure, write and return the table.

    Raises UsageError for a row that is not there or would be another one's double, data that is missing, or a folder
    that holds another ablation; DataError for data that a task cannot use; and what `train` raises.
    """
    out = Path(out)
    rows = [_row(number) for number in asked.rows]
    for name in ("pairs", "vqa", "nlvr2"):
        if name not in asked.data:
            raise UsageError(f"ablate: no data for {name}; give --{name} DATA")
    _check(asked, rows)
    fingerprints = {name: PreparedData(folder).fingerprint for name, folder in asked.data.items()}
    asked = _claim(out, asked, fingerprints)
    result = AblationResult(_figures_of_before(out), fingerprints=fingerprints)
    _finish(out, asked, result)  # the folder is this ablation's from now on, whatever stops it
    features = out.absolute() / "features"  # of one CNN for all rows while it stays frozen
    own = replace(
        asked, overrides=(f"train.features_folder={json.dumps(str(features), ensure_ascii=False)}", *asked.overrides)
    )
    for seed in asked.seeds:
        for row in rows:
            say(f"row {row.number} ({row.label}), seed {seed}")
            result.figures.setdefault(row.number, {})[seed] = _row_figures(out, row, seed, own)
            _finish(out, asked, result)
    shutil.rmtree(features, ignore_errors=True)
    return result


def _check(asked: Ablation, rows: Sequence[Row]) -> None:
    """Before hours of work: every row is a row of its own, every recipe is right, every task can use its data."""
    if any(row.larger for row in rows) and not asked.larger:
        raise UsageError("ablate: row 6 needs a larger CNN: --larger backbone.name=..., or choose rows with --row")
    recipe = load_recipe(f"pretrain-{asked.size}", list(asked.overrides))
    if any(row.pretrained and row.sampled for row in rows) and not recipe.visual.num_sampled_pixels:
        raise UsageError(f"ablate: {recipe.name} samples no pixels; say how many: visual.num_sampled_pixels=N")
    for row in rows:
        for seed in asked.seeds:
            for task in (*(["pretrain"] if row.pretrained else []), *_TASKS):
                _recipe(task, row, seed, asked)
    for task in ("pretrain", *_TASKS):
        data = asked.data["pairs" if task in ("pretrain", "retrieval") else task]
        TASKS[load_recipe(f"{task}-{asked.size}").task].check(PreparedData(data))


def _figures_of_before(out: Path) -> dict[int, dict[int, dict[str, float]]]:
    """figures[row][seed] of the rows and seeds that stand finished in the folder. Raises CheckpointError."""
    found: dict[int, dict[int, dict[str, float]]] = {}
    for path in sorted(out.glob("row-*/seed-*/figures.json")):
        row, seed = (part.name.partition("-")[2] for part in (path.parents[1], path.parent))
        if row.isdecimal() and seed.isdecimal() and any(own.number == int(row) for own in ROWS):
            found.setdefault(int(row), {})[int(seed)] = _read(path, _names(), "the file")
    return found


def _read(path: Path, names: Sequence[str], remedy: str) -> dict[str, float]:
    """The figures of these names in a file of ours. Raises CheckpointError: delete `remedy`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: float(found[name]) for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error, remedy) from error


def _damaged(path: Path, error: Exception, remedy: str) -> CheckpointError:
    what = f"no {error}" if isinstance(error, KeyError) else error
    return CheckpointError(f"{path}: damaged ({what}); delete {remedy}, then give the same command again")


def _row(number: int) -> Row:
    found = next((row for row in ROWS if row.number == number), None)
    if found is None:
        raise UsageError(f"ablate: no row {number}; {nearest(str(number), [str(row.number) for row in ROWS])}")
    return found


def _claim(out: Path, asked: Ablation, fingerprints: Mapping[str, str]) -> Ablation:
    """The folder is empty or holds this very ablation; rows and seeds may be added, and so the larger CNN's row."""
    path = out / "ablation.json"
    if path.is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            before, known = dict(content["asked"]), dict(content.get("fingerprints") or {})
            if 6 not in asked.rows:
                asked = replace(asked, larger=tuple(before["larger"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: damaged ({error}); choose another folder") from error
        now = json.loads(json.dumps(asdict(asked)))
        free = {"rows", "seeds"} | (set() if (out / "row-6").exists() else {"larger"})
        changed = [name for name in now if name not in free and before.get(name) != now[name]]
        told = [
            f"{name}: {before.get(name)} there, {now[name]} here" for name in changed if name != "data" or not known
        ]
        if known:  # then it does not matter what the folders are called
            told += [f"other data in {asked.data[name]}" for name in known if known[name] != fingerprints.get(name)]
        if told:
            raise UsageError(f"{out}: holds another ablation ({'; '.join(told)}); choose another folder")
    elif out.exists() and any(out.iterdir()):
        raise UsageError(f"{out}: exists and holds no ablation; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    return asked


# -- runs --------------------------------------------------------------------------------------------------------------


def _row_figures(out: Path, row: Row, seed: int, asked: Ablation) -> dict[str, float]:
    folder = out / f"row-{row.number}" / f"seed-{seed}"
    figures: dict[str, float] = {}
    done = folder / "figures.json"
    if done.is_file():
        return _read(done, _names(), "the file")
    start: Path | None = None
    if row.pretrained:
        start = folder / "pretraining"
        _run(_recipe("pretrain", row, seed, asked), asked.data["pairs"], start, None)
    for task in _TASKS:
        data = asked.data["pairs" if task == "retrieval" else task]
        figures |= _run(_recipe(task, row, seed, asked), data, folder / task, start, _FIGURES[task])
    _write(done, figures)
    for checkpoints in folder.glob("*/checkpoints"):
        shutil.rmtree(checkpoints, ignore_errors=True)
    return figures


def _recipe(task: str, row: Row, seed: int, asked: Ablation) -> Recipe:
    """What a row trains: `pretrain` or one of the tasks. Raises UsageError for a change that no recipe takes."""
    own = [f"seed={seed}", *asked.overrides, *(asked.larger if row.larger else ()), "validation.times=1"]
    if task == "pretrain":
        changes = [*own, *row.changes(), f"schedule.pairs={asked.pairs}", *asked.pretraining]
    elif task == "retrieval":
        changes = [
            *own, f"schedule.pairs={asked.retrieval_examples}", "contrastive_size=0", "loss.contrastive=0",
            "itm.words=false", "validation.shortlist=0", "validation.captions_per_image=1",
            f"validation.exact_images={asked.retrieval_images}",
        ]  # fmt: skip
    else:
        changes = [*own, f"schedule.pairs={asked.examples}"]
    return load_recipe(f"{task}-{asked.size}", changes)


def _run(recipe: Recipe, data: str, run: Path, start: Path | None, names: Sequence[str] = ()) -> dict[str, float]:
    """Train, or go on, or take what a finished run has; the figures of these names."""
    from pixelbert.training.several import train_on

    finished = run / "finished.json"
    if finished.is_file():
        return _read(finished, names, f"the folder {run}")
    metrics = train_on(recipe, data, run, from_run=start)
    figures = {name: metrics[name] for name in names}
    _write(finished, figures)
    return figures


# -- what came of it ---------------------------------------------------------------------------------------------------


def _finish(out: Path, asked: Ablation, result: AblationResult) -> None:
    result.claims = claims(out, result.figures)
    result.pretraining = pretraining_figures(out, result.figures)
    result.table = table(result)
    content = {"asked": asdict(asked), "fingerprints": result.fingerprints, "figures": result.figures,
               "pretraining": result.pretraining, "claims": result.claims}  # fmt: skip
    _write(out / "ablation.json", content)
    from pixelbert.training.files import write_file

    write_file(out / "table.md", result.table)


def _write(path: Path, content: Any) -> None:
    from pixelbert.training.files import write_file

    write_file(path, json.dumps(content, indent=2) + "\n")


def _names() -> list[str]:
    return [name for task in _TASKS for name in _FIGURES[task]]


def record_scores(run: Path, name: str) -> dict[str, float]:
    """Each record's own score, percent, behind a figure of a run's last validation; of `i2t_r1` each image's.

    Raises CheckpointError for a damaged file.
    """
    file = {"t2i_r1": "ranks.jsonl", "i2t_r1": "image_ranks.jsonl"}.get(name, "records.jsonl")
    path = run / "validation" / file
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if name == "i2t_r1":
            return {row["image"]: 100.0 * (row["rank"] == 1) for row in rows}
        if name == "t2i_r1":
            return {row["record"]: 100.0 * (row["rank"] == 1) for row in rows}
        if name == "vqa_score":
            return {row["record"]: float(row["score"]) for row in rows}
        return {row["record"]: 100.0 * bool(row["right"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error, f"the folder {run.parent}") from error


def difference(
    first: Mapping[int, Mapping[str, float]], second: Mapping[int, Mapping[str, float]]
) -> tuple[float, float]:
    """Mean of first - second and its standard error, of scores by seed and record.

    The error is the larger of two: over records (paired; the mean over seeds), and over seeds where there are several.
    """
    seeds = sorted(first.keys() & second.keys())
    gaps = []
    for seed in seeds:
        records = sorted(first[seed].keys() & second[seed].keys())
        gaps.append(np.array([first[seed][r] - second[seed][r] for r in records]))
    means = np.array([gap.mean() for gap in gaps])
    joined = np.mean(gaps, axis=0)
    error = float(joined.std(ddof=1) / np.sqrt(len(joined))) if len(joined) > 1 else float("inf")
    if len(means) > 1:
        error = max(error, float(means.std(ddof=1) / np.sqrt(len(means))))
    return float(means.mean()), error


def claims(out: Path, figures: Mapping[int, Mapping[int, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """What the paper finds, judged on our rows by the seeds they share: within two standard errors is a tie."""
    judged = []
    for claim, better, others in CLAIMS:
        for worse in others:
            if not figures.get(better, {}).keys() & figures.get(worse, {}).keys():
                continue
            for task in _TASKS:
                for name in _FIGURES[task]:
                    scores = [_by_seed(out, row, task, name, figures[row]) for row in (better, worse)]
                    gap, error = difference(*scores)
                    verdict = "tie" if abs(gap) <= 2 * error else ("holds" if gap > 0 else "fails")
                    judged.append({"claim": claim, "rows": [better, worse], "figure": name, "difference": round(gap, 2),
                                   "standard_error": round(error, 2), "verdict": verdict})  # fmt: skip
    return judged


def pretraining_figures(
    out: Path, figures: Mapping[int, Mapping[int, Mapping[str, float]]]
) -> dict[int, dict[int, dict[str, float]]]:
    """[row][seed][name], percent: the last validation of each finished row's pretraining."""
    from pixelbert.training.checkpoint import last_figures

    found: dict[int, dict[int, dict[str, float]]] = {}
    for row in ROWS:
        for seed in figures.get(row.number, {}) if row.pretrained else ():
            last = last_figures(out / f"row-{row.number}" / f"seed-{seed}" / "pretraining" / "metrics.jsonl")
            if all(name in last for name in _OF_PRETRAINING):
                found.setdefault(row.number, {})[seed] = {name: round(last[name], 2) for name in _OF_PRETRAINING}
    return found


def _by_seed(out: Path, row: int, task: str, name: str, seeds: Mapping[int, Any]) -> dict[int, dict[str, float]]:
    return {seed: record_scores(out / f"row-{row}" / f"seed-{seed}" / task, name) for seed in seeds}


def table(result: AblationResult) -> str:
    """Markdown: the paper's figures beside ours, mean and spread (standard deviation) over seeds."""
    lines = _header("#", "pretraining", *(f"{column} paper / ours" for column in COLUMNS))
    for row in ROWS:
        if row.number not in result.figures:
            continue
        seeds = result.figures[row.number].values()
        cells = [
            f"{paper:.1f} / {_mean_and_spread([figures[name] for figures in seeds])}"
            for name, paper in zip(_names(), row.paper, strict=True)
        ]
        lines.append(_line(str(row.number), row.label, *cells))
    return "\n".join([*lines, *_pretraining_table(result), *_claims_table(result)]) + "\n"


def _pretraining_table(result: AblationResult) -> list[str]:
    rows = [row for row in ROWS if result.pretraining.get(row.number)]
    lines = ["", "What the pretraining itself came to, on held-out images:", ""]
    lines += _header("#", "pretraining", *_OF_PRETRAINING.values())
    for row in rows:
        seeds = result.pretraining[row.number].values()
        cells = [
            _mean_and_spread([figures[name] for figures in seeds]) if (row.itm if "itm" in name else row.mlm) else ""
            for name in _OF_PRETRAINING
        ]
        lines.append(_line(str(row.number), row.label, *cells))
    return lines if rows else []


def _claims_table(result: AblationResult) -> list[str]:
    """A line for each pair of rows: the difference, its standard error and the verdict for each figure."""
    pairs: dict[tuple[str, int, int], dict[str, str]] = {}
    for judged in result.claims:
        better, worse = judged["rows"]
        cell = f"{judged['difference']:+.1f} ({judged['standard_error']:.1f}) {judged['verdict']}"
        pairs.setdefault((judged["claim"], better, worse), {})[judged["figure"]] = cell
    lines = ["", "What the paper finds; our difference, its standard error, and within two of them a tie:", ""]
    lines += _header("the paper finds", "rows", *COLUMNS)
    for (claim, better, worse), cells in pairs.items():
        lines.append(_line(claim, f"{better} - {worse}", *(cells.get(name, "") for name in _names())))
    return lines if pairs else []


def _header(*cells: str) -> list[str]:
    return [_line(*cells), "|" + "---|" * len(cells)]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _mean_and_spread(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"**{np.mean(values):.1f}**{spread}"
