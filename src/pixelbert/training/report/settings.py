"""The report's last part: settings of the recipe, weights it started from, and the commands to go on."""

from __future__ import annotations

import shlex
from typing import Any

from pixelbert.errors import PixelBertError
from pixelbert.recipes.schema import load_recipe, recipe_names
from pixelbert.training.report.blind import blind_folder, flat
from pixelbert.training.report.record import RunRecord

_LISTED = 60  # names of a weights report that the page lists


def recipe_settings(record: RunRecord) -> dict[str, Any]:
    """All settings in sections, and which differ from the recipe of that name that comes with the package."""
    facts = ("name", "description", "paper", "needs", "command", "expected")
    values = {k: v for k, v in flat(record.recipe).items() if k not in facts}
    changed = _changed(record, values)
    sections: dict[str, list[tuple[str, str, bool]]] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section or "run", []).append((name or key, _setting(value), key in changed))
    rows = [(key, _setting(shipped), _setting(values.get(key))) for key, shipped in changed.items()]
    return {"sections": sections, "changed": rows}


def _changed(record: RunRecord, values: dict[str, Any]) -> dict[str, Any]:
    """Setting -> the shipped recipe's value, where this run's is another. {} for a recipe of one's own."""
    name = record.recipe.get("name")
    if name not in recipe_names():
        return {}
    try:
        shipped = flat(load_recipe(name).model_dump(mode="json"))
    except PixelBertError:
        return {}
    return {k: shipped[k] for k, v in values.items() if k in shipped and shipped[k] != v}


def _setting(value: Any) -> str:
    """A value as people write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_setting(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list) and value:
        return ("; " if isinstance(value[0], dict) else ", ").join(map(_setting, value))
    return "none" if value in ([], "") else str(value)


def weight_rows(reports: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a source of weights: how many tensors were loaded, missing, unused, misshaped; the names cut to a few."""
    rows = []
    for part, report in reports.items():
        if not isinstance(report, dict):
            rows.append({"part": part, "source": str(report), "lists": {}, "notes": []})
            continue
        names = {k: [str(n) for n in report.get(k) or []] for k in ("loaded", "missing", "unused", "misshaped")}
        told = {k: len(v) if k in report else "" for k, v in names.items()}  # a run started from tells no `loaded`
        lists = {k: {"count": told[k], "names": v[:_LISTED] if k != "loaded" else []} for k, v in names.items()}
        notes = report.get("notes") or []
        rows.append({"part": part, "source": report.get("source", ""), "lists": lists, "notes": notes})
    return rows


def commands(record: RunRecord) -> list[tuple[str, str]]:
    """(what for, command line). The saved recipe holds every change, so none needs to be repeated."""
    data = (record.run.get("data") or {}).get("location") or "DATA"
    run, recipe = str(record.path), str(record.path / "recipe.yaml")
    source = record.run.get("from") or (record.run.get("weights") or {}).get("from")
    start = ["--from", source] if isinstance(source, str) else []
    found = []
    if not record.finished:
        found.append(("go on", ["train", recipe, "--data", data, "--out", run, "--resume"]))
    found.append(("evaluate", ["evaluate", run, "--data", data, "--split", str(record.get("data.val_split", "val"))]))
    if not record.blind:
        blind = ["train", recipe, "--data", data, "--out", str(blind_folder(record.path)), "--blind", *start]
        found.append(("train its blind model", blind))
    return [(what, shlex.join(["pixelbert", *words])) for what, words in found]
