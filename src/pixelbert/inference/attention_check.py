"""Is attention evidence? The part of it that falls on the object a word names, against chance, for every method.

For each word that names an object of known place (`named_objects`): the share of the map that falls on the object's
boxes, divided by their share of the photo's cells. 1 is chance: a map that is even, or that knows nothing. The same
is measured for a control, the word of another caption with its caption (of another category) shown the same photo and
scored on the same boxes: what is above 1 there is no answer to the word, only where any word looks (the middle, the
large thing).

The best method (`share_over_chance`) is the one of the largest ratio, the most telling one that which stands most above
its control. Choosing a method on the words that it is then measured on would flatter it, so photos are in two halves:
what is chosen on one half is measured on the other, and the figures are of both halves together.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pixelbert
from pixelbert.data.files import check_output
from pixelbert.errors import DataError, UsageError, nearest
from pixelbert.inference.attention import METHODS, Looking, Method, core_of, see
from pixelbert.inference.named_objects import NamedObject, read_named_objects
from pixelbert.model import precision
from pixelbert.tasks.run import find_device, load_run, put_on_device

_RESAMPLES = 2000
FIRST = Method()  # the paper's


def methods_of(model: Any, names: Sequence[str] | None = None) -> list[Method]:
    """Every method, layer and, of plain attention, head of a model; only those of the names that are given.

    The last layer's match gradient is left out: there only [CLS] reaches the score, and no other word has a gradient.
    """
    text = core_of(model).config.text_config
    layers, heads = range(1, text.num_hidden_layers + 1), range(1, text.num_attention_heads + 1)
    listed = [Method("attention", layer) for layer in layers]
    listed += [Method("attention", layer, head) for layer in layers for head in heads]
    listed += [Method("rollout", layer) for layer in layers[1:]]  # of one layer it is that layer's attention
    listed += [Method("gradient-match", layer) for layer in layers[:-1]]
    listed += [Method("gradient-word", layer) for layer in layers]
    listed += [Method("occlusion-match"), Method("occlusion-word"), Method("occlusion-word", occlude=2)]
    listed += [Method("similarity")] if getattr(model, "contrastive", None) is not None else []
    listed.append(Method("nearness"))
    if names is None:
        return listed
    for name in names:
        if name not in METHODS:
            raise UsageError(f"no method '{name}'; {nearest(name, METHODS)}")
    return [method for method in listed if method == FIRST or method.name in names]


def check_run(
    run: str | Path,
    folder: str | Path,
    *,
    out: str | Path | None = None,
    part: str | None = None,
    photos: int = 0,
    methods: Sequence[str] | None = None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """`check_attention` of a run folder's best model, with where and when; written to the JSON file `out`, if given.

    Raises what `check_attention` raises; CheckpointError for a folder that is no run, UsageError for a run of another
    task than pretraining or a file that cannot be written, all before anything is measured.
    """
    if out is not None:
        check_output(Path(out))
    recipe, model, processor = load_run(Path(run))
    if not hasattr(model, "mlm_head"):
        raise UsageError(f"{run}: a run of {recipe.task}; attention is checked on a pretraining run")
    put_on_device(model, recipe.train.precision, find_device())
    result = check_attention(model, processor, folder, part=part, photos=photos, methods=methods, tell=tell)
    result |= {
        "run": Path(run).name, "version": pixelbert.__version__, "date": dt.date.today().isoformat(),
        "machine": precision.detect().name,
    }  # fmt: skip
    if out is not None:
        write_check(out, result)
    return result


def check_attention(
    model: Any,
    processor: Any,
    folder: str | Path,
    *,
    part: str | None = None,
    photos: int = 0,
    methods: Sequence[str] | None = None,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure every method on a folder of pictures with known objects.

    Args:
        model: a pretraining model in evaluation mode. processor: its own.
        folder, part, photos: as in `read_named_objects`.
        methods: names of `METHODS`; None: all. Plain attention of the first layer is always measured.
        seed: of the control's draw and of the intervals.
        tell: is called with a line of progress now and then.

    Returns:
        {"figures": {"share_over_chance", "share_over_chance_low", "..._high", "..._control", the same four of
        `most_telling`, "first_layer", "first_layer_control"}, "best" and "most_telling": the methods chosen for the
        halves, "methods": a row each, best first, "photos", "words", ...}; a row holds share_on_object, share_of_area
        and over_chance, control and over_control, each a mean over the words with its bootstrap 95 % interval over
        photos [low, high].

    Raises DataError when the folder holds nothing to measure on, UsageError for a method that is not there.
    """
    started = time.monotonic()
    named = read_named_objects(Path(folder), part, photos)
    listed = methods_of(model, methods)
    shares, controls, areas = _measure(model, processor, named, listed, seed, tell)
    used = areas > 0  # an object that no cell shows is nowhere to be found
    photo_of = np.unique([str(item.image) for item in named], return_inverse=True)[1][used]
    area = areas[used]
    over, control = shares[:, used] / area, controls[:, used] / area
    rows = [_row(method, shares[i, used], area, over[i], control[i], photo_of, seed) for i, method in enumerate(listed)]
    first, figures, chosen = rows[listed.index(FIRST)], dict[str, float](), dict[str, list[str]]()
    for name, key, worth in (("share_over_chance", "best", over), ("most_telling", "most_telling", over - control)):
        halves = _best_of_other_half(worth, photo_of)
        value, (low, high) = _mean(_at(over, halves, photo_of), photo_of, seed)
        apart, _ = _mean(_at(control, halves, photo_of), photo_of, seed)
        figures |= {name: value, f"{name}_low": low, f"{name}_high": high, f"{name}_control": apart}
        chosen[key] = [str(listed[i]) for i in halves]
    return {
        "figures": figures | {"first_layer": first["over_chance"], "first_layer_control": first["control"]},
        "unit": "times chance",
        **chosen,
        "data": Path(folder).name,
        "photos": int(photo_of.max()) + 1,
        "words": int(used.sum()),
        "minutes": round((time.monotonic() - started) / 60, 2),
        "methods": sorted(rows, key=lambda row: -row["over_chance"]),
    }


def _measure(
    model: Any,
    processor: Any,
    named: Sequence[NamedObject],
    methods: Sequence[Method],
    seed: int,
    tell: Callable[[str], None] | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares on the object and those of the control, both float64 [methods, words], and the share of area [words]."""
    others = foreign_words(named, seed)
    shares, controls = np.zeros((2, len(methods), len(named)))
    areas = np.zeros(len(named))
    photo, last, told = None, None, time.monotonic()
    for place, item in enumerate(named):
        if item.image != last:
            photo, last = see(model, processor, item.image), item.image
        assert photo is not None
        covered = photo.cells.covered(item.boxes)
        areas[place] = (covered * photo.cells.even).sum()
        for target, asked in ((shares, item), (controls, named[others[place]])):
            looking = Looking(model, processor, photo, asked.sentence)
            for i, method in enumerate(methods):
                weights = looking.at(asked.name, method).weights
                target[i, place] = share_on(weights, covered, photo.cells.even)
        if tell is not None and time.monotonic() - told > 10:
            told = time.monotonic()
            tell(f"{place + 1} of {len(named)} words")
    return shares, controls, areas


def share_on(weights: np.ndarray, covered: np.ndarray, even: np.ndarray) -> float:
    """The part of a map that falls on an object; a map of zeros points nowhere and counts as spread evenly.

    All float64 [rows, columns]: weights of sum 1 or 0, the part of each cell that the object covers, an even map.
    """
    return float((covered * (weights if weights.any() else even)).sum())


def foreign_words(named: Sequence[NamedObject], seed: int) -> np.ndarray:
    """For each word another one, of another picture and another category: int64 [words].

    Raises DataError when there is none for some word.
    """
    draw = np.random.default_rng(seed)
    categories = np.array([item.category for item in named])
    images = np.array([str(item.image) for item in named])
    chosen = []
    for place, item in enumerate(named):
        possible = np.flatnonzero((categories != item.category) & (images != images[place]))
        if not len(possible):
            raise DataError(
                f"{item.image}: no other picture's caption names anything but '{item.category}', and the control needs"
                " another thing; take more pictures (--photos)"
            )
        chosen.append(int(draw.choice(possible)))
    return np.array(chosen)


def _best_of_other_half(worth: np.ndarray, photo_of: np.ndarray) -> list[int]:
    """For the photos of even number and those of odd number the method of most worth on the other half.

    worth: float64 [methods, words]; photo_of: int64 [words].
    """
    odd = photo_of % 2 == 1
    both = odd.any() and not odd.all()
    return [int(worth[:, other if both else odd | ~odd].mean(1).argmax()) for other in (odd, ~odd)]


def _at(values: np.ndarray, halves: list[int], photo_of: np.ndarray) -> np.ndarray:
    """For every word the value of its half's method, of values float64 [methods, words]."""
    return values[np.array(halves)[photo_of % 2], np.arange(values.shape[1])]


def _row(
    method: Method,
    share: np.ndarray,
    area: np.ndarray,
    over: np.ndarray,
    control: np.ndarray,
    photo_of: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "method": str(method), "name": method.name, "layer": method.layer, "head": method.head,
        "share_on_object": round(float(share.mean()), 4), "share_of_area": round(float(area.mean()), 4),
    }  # fmt: skip
    for name, values in (("over_chance", over), ("control", control), ("over_control", over - control)):
        row[name], row[f"{name}_interval"] = _mean(values, photo_of, seed)
    return row


def _mean(values: np.ndarray, photo_of: np.ndarray, seed: int) -> tuple[float, list[float]]:
    """The mean over words and its 95 % interval by resampling photos, whose words belong together."""
    sums = np.bincount(photo_of, values)
    counts = np.bincount(photo_of)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(_RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return round(float(values.mean()), 3), [round(float(low), 3), round(float(high), 3)]


def table(result: dict[str, Any]) -> str:
    """The result as lines: the figure, then every method (single heads only where among the first ten), best first."""
    lines = [
        f"{result['data']}: {result['words']} words of {result['photos']} pictures; methods chosen on other pictures",
        _chosen(result, "best method", "share_over_chance", "best"),
        _chosen(result, "most above its control", "most_telling", "most_telling"),
        f"{'':28} on object  of area  {'over chance (95 %)':22}  control  over control (95 %)",
    ]
    for place, row in enumerate(result["methods"]):
        if row["head"] is None or place < 10:
            over, control = (_with_interval(row, name) for name in ("over_chance", "over_control"))
            share, area = f"{row['share_on_object']:.3f}", f"{row['share_of_area']:.3f}"
            lines.append(f"{row['method']:28} {share:>9}  {area:>7}  {over:22}  {row['control']:7.2f}  {control}")
    return "\n".join(lines)


def _chosen(result: dict[str, Any], title: str, name: str, key: str) -> str:
    figures, methods = result["figures"], ", ".join(sorted(set(result[key])))
    return (
        f"{title}: {figures[name]:.2f} times chance, 95 % {figures[f'{name}_low']:.2f} to "
        f"{figures[f'{name}_high']:.2f}; control {figures[f'{name}_control']:.2f} ({methods})"
    )


def _with_interval(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_interval"]
    return f"{row[name]:5.2f} ({low:.2f} to {high:.2f})"


def write_check(path: str | Path, result: dict[str, Any]) -> None:
    """The result as JSON, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
