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


def compare_blind(
    record: RunRecord, shown: Scored, blind: RunRecord | None, figure: str = "mlm_accuracy", unit: str = "pairs"
) -> Blind | None:
    """The blind model's `figure` beside those shown; None without any.

    An evaluation that scored the blind model on the same records has it already (`..._blind`); else it is what an
    evaluation of the blind run on as many records came to, or what it got on validation after the same number of pairs,
    or at its last. unit: what pairs are called.
    """
    row = _evaluated_beside(record, shown, blind, figure) or _row_beside(blind, shown, figure)
    told = {k.removesuffix("_blind"): v for k, v in shown.figures.items() if k.endswith("_blind") and "_gain_" not in k}
    if figure in told:
        same = row is not None and abs(row["figures"][figure] - told[figure]) < 0.05  # so its other figures are too
        figures = {**(row["figures"] if row and same else {}), **told}
        return Blind("", told[figure], shown.pairs, [], figures, _rows(blind, row) if same else [])
    if blind is None or row is None:
        return None
    differences = _differences(record, shown, blind, row, unit)
    return Blind(blind.name, row["figures"][figure], row["pairs"], differences, row["figures"], _rows(blind, row))


def _evaluated_beside(record: RunRecord, shown: Scored, blind: RunRecord | None, figure: str) -> Row | None:
    """An evaluation of the blind run on the records that the shown one is of, as a validation's row; the run's last
    model, or its best where that has seen as many pairs.
    """
    asked = record.evaluations.get(shown.folder.name) if shown.date else None
    if blind is None or asked is None or not blind.validations:
        return None
    alike = ["data", "split", "images", "texts", "folds", "middle_view"]
    alike += ["shortlist", "exact_images"] if record.task == "retrieval" else []  # they change its figures
    found = []
    for name, result in blind.evaluations.items():
        of = blind.validations[-1] if result.get("model") == "last" else (blind.best or blind.validations[-1])
        if figure in result["figures"] and all(result.get(key) == asked.get(key) for key in alike):
            folder = blind.path / "evaluation" / name
            found.append(
                {"figures": result["figures"], "pairs": of["pairs"], "texts": result["texts"], "folder": folder}
            )
    return next((row for row in found if row["pairs"] == shown.pairs), found[-1] if found else None)


def _row_beside(blind: RunRecord | None, shown: Scored, figure: str) -> Row | None:
    """The blind run's validation after as many pairs, or its last."""
    told = [r for r in blind.validations if figure in r["figures"]] if blind is not None else []
    return next((r for r in told if r["pairs"] == shown.pairs), told[-1] if told else None)


def _rows(blind: RunRecord | None, row: Row | None) -> list[Row]:
    """Per-record rows of the blind run's last validation or of its evaluation, when that is the one compared."""
    if row is not None and "folder" in row:
        return read_records(row["folder"])
    if blind is None or row is None or row is not blind.validations[-1]:
        return []
    return blind.validation_records


def _differences(record: RunRecord, shown: Scored, blind: RunRecord, row: Row, unit: str) -> list[str]:
    """In what the blind run is not what it should be: the same but for the pictures."""
    differences = []
    if row["pairs"] != shown.pairs:
        differences.append(f"it has seen {row['pairs']:,} {unit}, not {shown.pairs:,}")
    differences += trained_otherwise(record, blind)
    texts = row["texts"] if "texts" in row else read_sheet(blind.path / "validation").get("captions")
    if texts and shown.captions and texts != shown.captions:
        differences.append(f"it was scored on {texts:,} captions, not {shown.captions:,}")
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
