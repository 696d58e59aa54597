"""What a run folder tells: read leniently, because a report is also wanted of a run that goes on or was killed."""

from __future__ import annotations

import datetime as dt
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pixelbert.errors import CheckpointError
from pixelbert.model.precision import cores
from pixelbert.training.files import read_lines

if TYPE_CHECKING:
    from pixelbert.model.precision import Capability, Precision

Row = dict[str, Any]


def record_session(run: Path, step: int, steps: int, found: Capability, chosen: Precision, ranks: int = 1) -> None:
    """Append to RUN/sessions.jsonl that a run starts or goes on at `step` of `steps`, on what machine and how."""
    session = {
        "time": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "step": step, "steps": steps, "ranks": ranks, "device": found.device, "machine": found.name,
        "vectors": found.vectors, "cores": cores(), "backbone": chosen.backbone, "encoder": chosen.encoder,
        "reason": chosen.reason,
    }  # fmt: skip
    with open(run / "sessions.jsonl", "a", encoding="utf-8") as handle:
        handle.write(json.dumps(session) + "\n")


@dataclass(frozen=True)
class Scored:
    """Figures (percent) of a model after `pairs`, and the folder of the words and examples that go with them.

    whole: whether those words are of this very model; else they are of a later one. images, captions, exact_images:
    how many were scored, where that is known. date: of an evaluation; empty for a validation.
    """

    figures: dict[str, float]
    pairs: int
    split: str
    folder: Path
    whole: bool
    date: str
    images: int | None
    captions: int | None
    exact_images: int | None

    @property
    def per_image(self) -> int:
        """Captions of an image."""
        return max(1, round(self.captions / self.images)) if self.captions and self.images else 1

    @cached_property
    def words(self) -> list[Row]:
        """The masked words, one by one."""
        rows = read_lines(self.folder / "masked_words.jsonl")
        return [r for r in rows if r.keys() >= {"record", "word", "predicted", "predicted_shuffled"}]

    @cached_property
    def records(self) -> list[Row]:
        """The scored records of a downstream task, one by one."""
        return read_records(self.folder)


@dataclass
class RunRecord:
    """A run folder's small files. What is missing is empty; only recipe.yaml and run.json must be there."""

    path: Path
    recipe: dict[str, Any]
    run: dict[str, Any]
    train: list[Row] = field(default_factory=list)  # one a step
    validations: list[Row] = field(default_factory=list)
    sessions: list[Row] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Raises CheckpointError when `path` is no run folder or its recipe.yaml or run.json is damaged."""
        try:
            recipe = yaml.safe_load((path / "recipe.yaml").read_text(encoding="utf-8"))
            run = json.loads((path / "run.json").read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{path}: not a run folder (no {Path(error.filename or 'run.json').name})") from error
        except (ValueError, yaml.YAMLError) as error:
            raise CheckpointError(f"{path}: a damaged run folder ({error})") from error
        if not isinstance(recipe, dict) or not isinstance(run, dict):
            raise CheckpointError(f"{path}: a damaged run folder (recipe.yaml or run.json is not a mapping)")
        rows = read_lines(path / "metrics.jsonl")
        return cls(
            path, recipe, run,
            [r for r in rows if r.get("kind") == "train" and "pairs" in r],
            [r for r in rows if r.get("kind") == "validation" and r.get("figures") and "pairs" in r],
            read_lines(path / "sessions.jsonl"),
        )  # fmt: skip

    def get(self, setting: str, default: Any = None) -> Any:
        """A recipe setting by its dotted name."""
        value: Any = self.recipe
        for part in setting.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    @property
    def blind(self) -> bool:
        return bool(self.recipe.get("blind"))

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def task(self) -> str:
        """The recipe's task; runs that tell none are of pretraining."""
        return str(self.recipe.get("task") or self.run.get("task") or "pretraining")

    # -- how far ---------------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Steps done, as far as metrics.jsonl tells."""
        return max((int(r["step"]) for r in self.train), default=0)

    @property
    def pairs(self) -> int:
        """Pairs seen."""
        return max((int(r["pairs"]) for r in self.train), default=0)

    @property
    def steps(self) -> int | None:
        """Steps of the whole run; None when nothing tells."""
        told = next((int(s["steps"]) for s in reversed(self.sessions) if "steps" in s), None)
        planned, batch = self.get("schedule.pairs"), self.get("optim.batch_size")
        return told if told is not None or not planned or not batch else max(1, planned // batch)

    @property
    def finished(self) -> bool:
        return self.steps is not None and self.step >= self.steps

    @property
    def seconds(self) -> float | None:
        """Time the run has taken, validation and saving included; estimated from the rate for runs that do not tell."""
        told = [float(r["seconds"]) for r in (*self.train, *self.validations) if "seconds" in r]
        if told:
            return max(told)
        rate = self.train[-1].get("pairs_per_s") if self.train else None
        return self.pairs / rate if rate else None

    # -- validation ------------------------------------------------------------------------------------------------

    @property
    def select_on(self) -> str:
        return str(self.get("validation.select_on", "itm_accuracy"))

    @property
    def best(self) -> Row | None:
        """The validation whose model was kept as the best: the last with the highest value of `select_on`."""
        told = [r for r in self.validations if self.select_on in r["figures"]] or self.validations[-1:]
        return max(reversed(told), key=lambda r: r["figures"].get(self.select_on, 0.0), default=None)

    @cached_property
    def shown(self) -> Scored | None:
        """What the page shows: the best validation, or an evaluation on the same split that came later; None before."""
        best, split = self.best, str(self.get("data.val_split", "val"))
        validation = self.path / "validation"
        fresh = self.fresh_evaluations()
        later = [folder for folder in self._evaluated(split) if folder.name in fresh]
        if best is not None and later:
            folder, result = later[0], self.evaluations[later[0].name]
            row = self.validations[-1] if result.get("model") == "last" else best
            figures = {k: float(v) for k, v in result["figures"].items() if isinstance(v, (int, float))}
            counts = (result.get("images"), result.get("texts"), result.get("exact_images"))
            return Scored(figures, int(row["pairs"]), split, folder, True, str(result.get("date", "")), *counts)
        if best is None:
            return None
        images, captions = (read_sheet(validation).get(name) for name in ("images", "captions"))
        exact = int(self.get("validation.exact_images", 0))
        exact = min(exact, images) if images else exact
        whole = best is self.validations[-1]
        return Scored(best["figures"], int(best["pairs"]), split, validation, whole, "", images, captions, exact)

    def _evaluated(self, split: str) -> list[Path]:
        """The evaluations of a whole split by the best model: the exact one, then those through a shortlist."""
        listed = [name for name in self.evaluations if re.fullmatch(rf"{re.escape(split)}-shortlist\d+", name)]
        folders = [self.path / "evaluation" / name for name in listed]
        exact = [self.path / "evaluation" / split] if split in self.evaluations else []
        return exact + sorted(folders, key=_time, reverse=True)

    def fresh_evaluations(self) -> dict[str, dict[str, Any]]:
        """Those that came after the last validation: of these very models."""
        validated = _time(self.path / "validation")
        found = self.evaluations
        return {name: found[name] for name in found if _time(self.path / "evaluation" / name) >= validated}

    @cached_property
    def validation_records(self) -> list[Row]:
        """The scored records of the last validation, one by one (downstream tasks)."""
        return read_records(self.path / "validation")

    @cached_property
    def answers(self) -> list[str]:
        """The answers that the model chooses from, in its order; empty where config.json has none."""
        try:
            labels = json.loads((self.path / "config.json").read_text(encoding="utf-8")).get("id2label")
        except (OSError, ValueError, AttributeError):
            return []
        return [str(answer) for answer in labels.values()] if isinstance(labels, dict) else []

    @cached_property
    def evaluations(self) -> dict[str, dict[str, Any]]:
        """What `pixelbert evaluate` left, by split."""
        found = {}
        for path in sorted((self.path / "evaluation").glob("*/figures.json")):
            try:
                result = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(result, dict) and isinstance(result.get("figures"), dict):
                found[path.parent.name] = result
        return found

    def trained(self, loss: str) -> bool:
        """Whether a loss has a weight in the recipe or one of its phases."""
        phases = [p.get("loss") or {} for p in self.recipe.get("phases") or []]
        return any(float(weights.get(loss, 1.0)) > 0 for weights in [self.recipe.get("loss") or {}, *phases] if weights)


def read_sheet(folder: Path) -> dict[str, Any]:
    """FOLDER/examples.json; {} when there is none (an older version wrote the run)."""
    try:
        sheet = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return sheet if isinstance(sheet, dict) and isinstance(sheet.get("examples"), list) else {}


def read_looks(folder: Path) -> list[Row]:
    """The rows of FOLDER/attention.json; [] when there is none."""
    try:
        told = json.loads((folder / "attention.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    rows = told.get("attention") if isinstance(told, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def read_records(folder: Path) -> list[Row]:
    """FOLDER/records.jsonl, or the ranks.jsonl of retrieval."""
    return read_lines(folder / "records.jsonl") or read_lines(folder / "ranks.jsonl")


def _time(folder: Path) -> float:
    """When a folder's figures were written; 0 when they are not there."""
    try:
        return (folder / "figures.json").stat().st_mtime
    except OSError:
        return 0.0
