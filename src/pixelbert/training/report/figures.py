"""The figures at the top of the report, each beside what guessing would get: masked words, matches, recall."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelbert.errors import UsageError
from pixelbert.training.report.record import Row, RunRecord, Scored, read_sheet

# Settings in which a run and its blind model may differ and still be compared.
_MAY_DIFFER = (
    *("blind", "name", "description", "paper", "needs", "command", "expected", "train", "data.workers"),
    *("validation.times", "validation.exact_images", "validation.select_on", "validation.batch_size"),
)

SCORINGS = {
    "itm": "by match score",
    "rerank": "by pooled vectors, re-ranked by match score",
    "dual": "by pooled vectors",
}
DIRECTIONS = {"t2i": "picture for a caption", "i2t": "caption for a picture"}


@dataclass
class Blind:
    """The blind model's masked-word accuracy (percent) after `pairs`, and in what it is not comparable, if anything."""

    name: str
    accuracy: float
    pairs: int
    differences: list[str]


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


def compare_blind(record: RunRecord, shown: Scored, blind: RunRecord | None) -> Blind | None:
    """The blind model's figure beside those shown; None without any.

    An evaluation that scored the blind model on the same words has it already; else it is what the blind run got on
    validation after the same number of pairs, or at its last.
    """
    if "mlm_accuracy_blind" in shown.figures:
        return Blind("", shown.figures["mlm_accuracy_blind"], shown.pairs, [])
    if blind is None:
        return None
    pairs, told = shown.pairs, [r for r in blind.validations if "mlm_accuracy" in r["figures"]]
    if not told:
        return None
    row = next((r for r in told if r["pairs"] == pairs), told[-1])
    differences = []
    if row["pairs"] != pairs:
        differences.append(f"it has seen {row['pairs']:,} pairs, not {pairs:,}")
    if blind.run.get("data", {}).get("fingerprint") != record.run.get("data", {}).get("fingerprint"):
        differences.append("it was trained on other data")
    texts = read_sheet(blind.path / "validation").get("captions")
    if texts and shown.captions and texts != shown.captions:
        differences.append(f"it was scored on {texts:,} captions, not {shown.captions:,}")
    old, new = flat(record.recipe), flat(blind.recipe)
    changed = [k for k in sorted(old.keys() | new.keys()) if not _ignored(k) and old.get(k) != new.get(k)]
    differences += [f"its {key} is {new.get(key)!r}, not {old.get(key)!r}" for key in changed]
    return Blind(blind.name, row["figures"]["mlm_accuracy"], row["pairs"], differences)


def _ignored(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in _MAY_DIFFER)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


# -- masked words ------------------------------------------------------------------------------------------------------


def word_bars(figures: dict[str, float], words: list[Row], blind: Blind | None, is_blind: bool) -> list[dict[str, Any]]:
    """Masked-word accuracy side by side, percent: `label`, `value`, `kind` (own, shuffled, blind, commonest)."""
    if "mlm_accuracy" not in figures:
        return []
    own = "Blind model" if is_blind else "With its own picture"
    bars: list[dict[str, Any]] = [{"label": own, "value": figures["mlm_accuracy"], "kind": "own"}]
    if not is_blind and "mlm_accuracy_shuffled" in figures:
        bars.append({"label": "With another picture", "value": figures["mlm_accuracy_shuffled"], "kind": "shuffled"})
    if blind is not None:
        bars.append({"label": "Blind model", "value": blind.accuracy, "kind": "blind"})
    counts = Counter(str(w["word"]) for w in words if "word" in w)
    if counts:
        piece, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
        bars.append({"label": f"Always “{piece}”", "value": 100 * count / counts.total(), "kind": "commonest"})
    widest = max(bar["value"] for bar in bars) or 1.0
    scale = min(100.0, 10 * math.ceil(widest * 1.1 / 10))
    for bar in bars:
        bar["width"] = 100 * bar["value"] / scale
        bar["less"] = bars[0]["value"] - bar["value"] if bar["kind"] in ("shuffled", "blind") else None
    return bars


def gain_interval(words: list[Row]) -> float | None:
    """Half width of the 95 % interval of the gain over shuffled pictures, points; captions are what is resampled.

    The variance of a ratio (gain of a caption's places, number of its places), by its usual linear approximation.
    """
    gains: dict[str, list[int]] = {}
    for w in words:
        gains.setdefault(str(w.get("record")), []).append(_gain(w))
    places = sum(len(g) for g in gains.values())
    if len(gains) < 30:
        return None
    mean = sum(sum(g) for g in gains.values()) / places
    variance = sum((sum(g) - mean * len(g)) ** 2 for g in gains.values()) / places**2
    return 196 * math.sqrt(variance)


def _gain(word: Row) -> int:
    return (word["predicted"] == word["word"]) - (word["predicted_shuffled"] == word["word"])


def four_ways(words: list[Row]) -> list[dict[str, Any]]:
    """Of all masked places the share right with both pictures, with its own alone, with another alone, with neither."""
    names = (("own", "right only with its own picture"), ("both", "right with either picture"),
             ("other", "right only with another picture"), ("neither", "wrong with either"))  # fmt: skip
    kinds = {(True, True): "both", (True, False): "own", (False, True): "other", (False, False): "neither"}
    counts = Counter(kinds[w["predicted"] == w["word"], w["predicted_shuffled"] == w["word"]] for w in words)
    total = max(1, counts.total())
    return [{"kind": k, "label": label, "count": counts[k], "share": 100 * counts[k] / total} for k, label in names]


# -- matches and recall ------------------------------------------------------------------------------------------------


def match_tile(figures: dict[str, float], captions: int | None, trained: bool) -> dict[str, Any] | None:
    """ITM accuracy with its 95 % interval: `value`, `interval`, `pairs` judged, `trained`."""
    value = figures.get("itm_accuracy")
    if value is None:
        return None
    share = value / 100
    interval = 196 * math.sqrt(share * (1 - share) / (2 * captions)) if captions else None
    return {"value": value, "interval": interval, "pairs": 2 * captions if captions else None, "trained": trained}


def recall_rows(figures: dict[str, float], images: dict[str, int | None], per_image: int) -> list[dict[str, Any]]:
    """A row a scoring and direction: R@1, 5, 10 in percent, and what chance gets.

    images: by scoring, how many there were to choose from (None where nothing tells). per_image: captions of each.
    """
    rows = []
    for scoring, how in SCORINGS.items():
        for direction, what in DIRECTIONS.items():
            values = [figures.get(f"{scoring}_{direction}_r{k}") for k in (1, 5, 10)]
            if all(value is None for value in values):
                continue
            count = images.get(scoring)
            chances = [chance(direction, k, count, per_image) for k in (1, 5, 10)] if count else None
            rows.append({"what": what, "how": how, "images": count, "values": values, "chances": chances})
    return rows


def chance(direction: str, k: int, images: int, per_image: int) -> float:
    """Percent that random order gets of R@k: one picture of `images`, or any of a picture's captions of all."""
    if direction == "t2i":
        return 100 * min(1.0, k / images)
    texts = images * per_image
    if k > texts - per_image:
        return 100.0
    return 100 * (1 - math.comb(texts - per_image, k) / math.comb(texts, k))
