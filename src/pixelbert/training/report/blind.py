"""The blind model beside a run: where it is found, which of its figures are compared, and whether it is alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixelbert.errors import UsageError
from pixelbert.training.report.record import Row, RunRecord, Scored, read_records, read_sheet

# Settings in which a run and its blind model may differ and still be compared.
_MAY_DIFFER = (
    *("blind", "name", "description", "paper", "needs", "command", "expected", "train", "data.workers"),
    *("validation.times", "validation.exact_images", "validation.select_on", "validation.batch_size"),
)


@dataclass
class Blind:
    """The blind model's main figure (percent) after `pairs`, and in what it is not comparable, if anything.

    figures: all its figures that may be compared. rows: its per-record rows, where they are of this very model.
    """

    name: str
    accuracy: float
    pairs: int
    differences: list[str]
    figures: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)


def find_blind(record: RunRecord, given: Path | None) -> RunRecord | None:
    """The blind run beside a run: the one given, else the folder RUN-blind where it is one. None for a blind run.

    Raises UsageError when the folder given is no blind run, CheckpointError when it is no run.
    """
    if record.blind:
        return None
    if given is not None:
        other = RunRecord.read(given)
        if not other.blind:
            raise UsageError(f"{given}: not a blind run; train one with --blind")
        return other
    sibling = blind_folder(record.path)
    if not (sibling / "run.json").is_file():
        return None
    other = RunRecord.read(sibling)
    return other if other.blind else None


def blind_folder(run: Path) -> Path:
    """Where a run's blind model is looked for."""
    path = run if run.name not in ("", "..") else run.resolve()
    return path.with_name(f"{path.name}-blind")


@dataclass(frozen=True)
class _Beside:
    """What the blind run came to after `pairs`: a validation, or an evaluation. captions: scored, where it is known."""

    figures: dict[str, float]
    pairs: int
    captions: int | None = None
    rows: list[Row] = field(default_factory=list)


def compare_blind(
    record: RunRecord, shown: Scored, blind: RunRecord | None, figure: str = "mlm_accuracy", unit: str = "pairs"
) -> Blind | None:
    """The blind model's `figure` beside those shown; None without any.

    An evaluation that scored the blind model on the same records has it already (`..._blind`). Else it is, of what the
    blind run came to after the same number of pairs or else at its last, an evaluation of as many records before a
    validation. unit: what pairs are called.
    """
    told = {k.removesuffix("_blind"): v for k, v in shown.figures.items() if k.endswith("_blind") and "_gain_" not in k}
    listed = [] if blind is None else [*_evaluated(record, shown, blind, figure), *_validated(blind, figure)]
    beside = next((one for one in listed if one.pairs == shown.pairs), listed[-1] if listed else None)
    if figure in told:
        same = beside is not None and abs(beside.figures[figure] - told[figure]) < 0.05  # so its other figures are too
        figures = {**(beside.figures if beside and same else {}), **told}
        return Blind("", told[figure], shown.pairs, [], figures, beside.rows if beside and same else [])
    if blind is None or beside is None:
        return None
    differences = _differences(record, shown, blind, beside, unit)
    return Blind(blind.name, beside.figures[figure], beside.pairs, differences, beside.figures, beside.rows)


def _evaluated(record: RunRecord, shown: Scored, blind: RunRecord, figure: str) -> list[_Beside]:
    """Evaluations of the blind run on as many records as the one that is shown, none from before its last training."""
    asked = record.evaluations.get(shown.folder.name) if shown.date else None
    if asked is None or not blind.validations:
        return []
    alike = ["data", "split", "images", "texts", "folds", "middle_view"]
    alike += ["shortlist", "exact_images"] if record.task == "retrieval" else []  # they change its figures
    found = []
    for name, result in blind.fresh_evaluations().items():
        of = blind.validations[-1] if result.get("model") == "last" else blind.best or blind.validations[-1]
        if figure in result["figures"] and all(result.get(key) == asked.get(key) for key in alike):
            rows = read_records(blind.path / "evaluation" / name)
            found.append(_Beside(result["figures"], int(of["pairs"]), result.get("texts"), rows))
    return found


def _validated(blind: RunRecord, figure: str) -> list[_Beside]:
    """The blind run's validations; the last one with its records."""
    captions = read_sheet(blind.path / "validation").get("captions")
    return [
        _Beside(
            row["figures"],
            int(row["pairs"]),
            captions,
            blind.validation_records if row is blind.validations[-1] else [],
        )
        for row in blind.validations
        if figure in row["figures"]
    ]


def _differences(record: RunRecord, shown: Scored, blind: RunRecord, beside: _Beside, unit: str) -> list[str]:
    """In what the blind run is not what it should be: the same but for the pictures."""
    differences = []
    if beside.pairs != shown.pairs:
        differences.append(f"it has seen {beside.pairs:,} {unit}, not {shown.pairs:,}")
    differences += trained_otherwise(record, blind)
    if beside.captions and shown.captions and beside.captions != shown.captions:
        differences.append(f"it was scored on {beside.captions:,} captions, not {shown.captions:,}")
    return differences


def trained_otherwise(record: RunRecord, blind: RunRecord) -> list[str]:
    """In what else than its pictures, and what changes no score, a blind run was trained otherwise than a run."""
    differences = []
    if (blind.run.get("data") or {}).get("fingerprint") != (record.run.get("data") or {}).get("fingerprint"):
        differences.append("it was trained on other data")
    old, new = flat(record.recipe), flat(blind.recipe)
    changed = [k for k in sorted(old.keys() | new.keys()) if not _ignored(k) and old.get(k) != new.get(k)]
    return differences + [f"its {key} is {new.get(key)!r}, not {old.get(key)!r}" for key in changed]


def _ignored(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in _MAY_DIFFER)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
